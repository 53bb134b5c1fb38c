import { events } from '../scenarios/events.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(events, onEnvoy, onEmulator);
