import { hostile } from '../scenarios/hostile.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(hostile, onEnvoy, onEmulator);
