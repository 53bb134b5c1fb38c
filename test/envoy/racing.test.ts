import { racing, smallLimits } from '../scenarios/racing.ts';
import { racingMooncake } from '../scenarios/racing_mooncake.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(racing, onEnvoy, onEmulator);
runSuite(smallLimits, onEnvoy, onEmulator);
runSuite(racingMooncake, onEnvoy, onEmulator);
