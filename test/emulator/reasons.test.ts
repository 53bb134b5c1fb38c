import { reasons } from '../scenarios/reasons.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(reasons, onEmulator);
