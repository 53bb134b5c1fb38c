import { onEmulator } from '../scenarios/hosts.ts';
import { broken, models } from '../scenarios/models.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(models, onEmulator);
runSuite(broken, onEmulator);
