import { decodeCache } from '../scenarios/decode_cache.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(decodeCache, onEnvoy, onEmulator);
