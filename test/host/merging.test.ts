// Envoy may deliver the end of a body apart from its last bytes or with them. The suites on Envoy
// are compared with an emulator that does the first; here it does the second.

import { onEmulatorMerging } from '../scenarios/hosts.ts';
import { racing } from '../scenarios/racing.ts';
import { runSuite } from '../scenarios/run.ts';

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
