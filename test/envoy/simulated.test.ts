import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';
import { paddings, simulated } from '../scenarios/simulated.ts';

runSuite(simulated, onEnvoy, onEmulator);
runSuite(paddings, onEnvoy, onEmulator);
