import { audit } from '../scenarios/audit.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(audit, onEmulator);
