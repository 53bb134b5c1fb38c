import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';
import { sglangCaptures } from '../scenarios/sglang_captures.ts';

runSuite(sglangCaptures, onEmulator);
