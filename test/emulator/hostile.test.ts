import { hostile } from '../scenarios/hostile.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(hostile, onEmulator);
