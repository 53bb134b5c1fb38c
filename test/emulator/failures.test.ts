import { onEmulator } from '../scenarios/hosts.ts';
import { failures, replyLimit } from '../scenarios/failures.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(failures, onEmulator);
runSuite(replyLimit, onEmulator);
