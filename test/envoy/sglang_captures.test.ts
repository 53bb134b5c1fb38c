import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';
import { sglangCaptures } from '../scenarios/sglang_captures.ts';

runSuite(sglangCaptures, onEnvoy, onEmulator);
