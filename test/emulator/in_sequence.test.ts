import { onEmulator } from '../scenarios/hosts.ts';
import { inSequence } from '../scenarios/in_sequence.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(inSequence, onEmulator);
