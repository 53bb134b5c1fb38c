import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';
import { turns } from '../scenarios/turns.ts';

runSuite(turns, onEnvoy, onEmulator);
