import { onEmulator } from '../scenarios/hosts.ts';
import { exchanges } from '../scenarios/exchange.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(exchanges, onEmulator);
