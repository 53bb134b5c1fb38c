import { caps } from '../scenarios/caps.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(caps, onEnvoy, onEmulator);
