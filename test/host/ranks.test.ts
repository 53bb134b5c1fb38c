import { onEmulator } from '../scenarios/hosts.ts';
import { runRanks } from '../scenarios/ranks.ts';
import { runRestarts } from '../scenarios/restarts.ts';

runRanks(onEmulator);
runRestarts(onEmulator);
