import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { failures, replyLimit } from '../scenarios/failures.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(failures, onEnvoy, onEmulator);
runSuite(replyLimit, onEnvoy, onEmulator);
