import { audit } from '../scenarios/audit.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(audit, onEnvoy, onEmulator);
