import { encodings } from '../scenarios/encodings.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(encodings, onEmulator);
