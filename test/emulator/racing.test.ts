import { racing } from '../scenarios/racing.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(racing, onEmulator);
