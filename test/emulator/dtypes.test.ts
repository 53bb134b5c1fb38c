import { legDtypes } from '../scenarios/dtypes.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(legDtypes, onEmulator);
