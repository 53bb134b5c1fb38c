import { unrouted } from '../scenarios/unrouted.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(unrouted, onEmulator);
