import { heads, headsWithoutField, heldWithoutField } from '../scenarios/heads.ts';
import { onEmulator, onEnvoy } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(heads, onEnvoy, onEmulator);
runSuite(headsWithoutField, onEnvoy, onEmulator);
runSuite(heldWithoutField, onEnvoy, onEmulator);
