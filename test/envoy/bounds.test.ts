import { bounds } from '../scenarios/bounds.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(bounds, onEnvoy, onEmulator);
