import { cached } from '../scenarios/cached.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(cached, onEmulator);
