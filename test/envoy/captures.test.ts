import { captures } from '../scenarios/captures.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(captures, onEnvoy, onEmulator);
