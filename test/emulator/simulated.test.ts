import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';
import { paddings, simulated } from '../scenarios/simulated.ts';

runSuite(simulated, onEmulator);
runSuite(paddings, onEmulator);
