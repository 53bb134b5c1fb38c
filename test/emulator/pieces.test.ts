import { pieces } from '../scenarios/pieces.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(pieces, onEmulator);
