import { encodings } from '../scenarios/encodings.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(encodings, onEnvoy, onEmulator);
