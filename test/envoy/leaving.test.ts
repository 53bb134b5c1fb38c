import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { leavers, bufferLimits } from '../scenarios/leaving.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(leavers, onEnvoy, onEmulator);
runSuite(bufferLimits, onEnvoy, onEmulator);
