import { connectors } from '../scenarios/connectors.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(connectors, onEmulator);
