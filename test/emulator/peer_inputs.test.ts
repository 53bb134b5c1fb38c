import { peerInputs } from '../scenarios/peer_inputs.ts';
import { onEmulator } from '../scenarios/hosts.ts';
import { runSuite } from '../scenarios/run.ts';

runSuite(peerInputs, onEmulator);
