import { endpoints } from '../scenarios/endpoints.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(endpoints, onEmulator);
