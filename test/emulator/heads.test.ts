import { heads, headsWithoutField, heldWithoutField } from '../scenarios/heads.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(heads, onEmulator);
runSuite(headsWithoutField, onEmulator);
runSuite(heldWithoutField, onEmulator);
