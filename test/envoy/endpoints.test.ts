import { endpoints } from '../scenarios/endpoints.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(endpoints, onEnvoy, onEmulator);
