import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { refused } from '../scenarios/refused.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(refused, onEnvoy, onEmulator);
