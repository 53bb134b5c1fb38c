import { onEmulator } from '../scenarios/hosts.ts';
import { indexer } from '../scenarios/indexer.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(indexer, onEmulator);
