import { onEmulator } from '../scenarios/hosts.ts';
import { local } from '../scenarios/local.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(local, onEmulator);
