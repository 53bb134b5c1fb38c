import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { exchanges } from '../scenarios/exchange.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(exchanges, onEnvoy, onEmulator);
