import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';
import { turns } from '../scenarios/turns.ts';

runSuite(turns, onEmulator);
