import { legDtypes } from '../scenarios/dtypes.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(legDtypes, onEnvoy, onEmulator);
