import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { reused } from '../scenarios/reused.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(reused, onEnvoy, onEmulator);
