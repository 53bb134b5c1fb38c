import { lastRow } from '../scenarios/last_row.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(lastRow, onEmulator);
