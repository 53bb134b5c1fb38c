import { caps } from '../scenarios/caps.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(caps, onEmulator);
