import { onEmulator } from '../scenarios/hosts.ts';
import { runRanks } from '../scenarios/ranks.ts';

runRanks(onEmulator);
