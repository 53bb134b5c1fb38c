import { connectors } from '../scenarios/connectors.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(connectors, onEnvoy, onEmulator);
