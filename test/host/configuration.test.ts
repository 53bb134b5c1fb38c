import { runConfigurations } from '../scenarios/configuration.ts';
import { onEmulator } from '../scenarios/hosts.ts';

runConfigurations(onEmulator);
