import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { formats } from '../scenarios/formats.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(formats, onEnvoy, onEmulator);
