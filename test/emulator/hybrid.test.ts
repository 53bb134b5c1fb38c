import { onEmulator } from '../scenarios/hosts.ts';
import { hybrid } from '../scenarios/hybrid.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(hybrid, onEmulator);
