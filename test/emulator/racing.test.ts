import { onEmulator } from '../scenarios/hosts.ts';
import { racing, smallLimits } from '../scenarios/racing.ts';
import { racingMooncake } from '../scenarios/racing_mooncake.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(racing, onEmulator);
runSuite(smallLimits, onEmulator);
runSuite(racingMooncake, onEmulator);
