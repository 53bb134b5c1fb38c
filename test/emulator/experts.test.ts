import { experts } from '../scenarios/experts.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(experts, onEmulator);
