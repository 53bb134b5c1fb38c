import { onEmulator } from '../scenarios/hosts.ts';
import { reused } from '../scenarios/reused.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(reused, onEmulator);
