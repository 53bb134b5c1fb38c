import { runConfigurations } from '../scenarios/configuration.ts';
import { onEnvoy } from '../scenarios/hosts.ts';

runConfigurations(onEnvoy);
