import { experts } from '../scenarios/experts.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(experts, onEnvoy, onEmulator);
