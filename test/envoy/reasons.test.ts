import { reasons } from '../scenarios/reasons.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(reasons, onEnvoy, onEmulator);
