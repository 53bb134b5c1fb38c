import { captures } from '../scenarios/captures.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(captures, onEmulator);
