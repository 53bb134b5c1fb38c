import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { broken, models } from '../scenarios/models.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(models, onEnvoy, onEmulator);
runSuite(broken, onEnvoy, onEmulator);
