import { onEmulator, onEmulatorMerging } from '../scenarios/hosts.ts';
import { racing, smallLimits } from '../scenarios/racing.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(racing, onEmulator);
runSuite(
  {
    ...racing,
    name: `${racing.name}, the end with the last bytes`,
    // A request that arrives in one piece with its end is in no buffer of Envoy's, so no limit
    // applies to it.
    cases: racing.cases.filter(({ name }) => !name.includes('take over the limit')),
  },
  onEmulatorMerging,
);
runSuite(smallLimits, onEmulator);
