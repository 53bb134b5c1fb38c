import { pieces } from '../scenarios/pieces.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(pieces, onEnvoy, onEmulator);
