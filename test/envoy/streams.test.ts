import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { streams } from '../scenarios/streams.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(streams, onEnvoy, onEmulator);
