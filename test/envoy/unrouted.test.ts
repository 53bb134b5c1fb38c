import { unrouted } from '../scenarios/unrouted.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(unrouted, onEnvoy, onEmulator);
