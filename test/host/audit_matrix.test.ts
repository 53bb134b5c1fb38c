// Audits in every format and deployment. That an engine is asked, and when, is for the suite on
// Envoy; what the filter makes of the answer does not depend on the host.

import { auditMatrix } from '../scenarios/audit.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(auditMatrix, onEmulator);
