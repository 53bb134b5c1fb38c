import { counts } from '../scenarios/counts.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(counts, onEmulator);
