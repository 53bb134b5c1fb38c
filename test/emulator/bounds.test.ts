import { bounds } from '../scenarios/bounds.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(bounds, onEmulator);
