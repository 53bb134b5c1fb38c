import { onEmulator } from '../scenarios/hosts.ts';
import { leavers, bufferLimits } from '../scenarios/leaving.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(leavers, onEmulator);
runSuite(bufferLimits, onEmulator);
