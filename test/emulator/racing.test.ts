import { onEmulator, onEmulatorMerging } from '../scenarios/hosts.ts';
import { racing, smallLimits } from '../scenarios/racing.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(racing, onEmulator);
runSuite(
  {
    ...racing,
    name: `${racing.name}, the end with the last bytes`,
    // A request in one piece is in no buffer of Envoy's, and under no limit.
    cases: racing.cases.filter(({ name }) => !name.includes('take over the limit')),
  },
  onEmulatorMerging,
);
runSuite(smallLimits, onEmulator);
