import { cached } from '../scenarios/cached.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(cached, onEnvoy, onEmulator);
