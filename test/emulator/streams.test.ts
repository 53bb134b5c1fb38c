import { onEmulator } from '../scenarios/hosts.ts';
import { streams } from '../scenarios/streams.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(streams, onEmulator);
