import { onEmulator } from '../scenarios/hosts.ts';
import { formats } from '../scenarios/formats.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(formats, onEmulator);
