import { counts } from '../scenarios/counts.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(counts, onEnvoy, onEmulator);
