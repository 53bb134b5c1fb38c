// One plugin configuration.

import { RootContext, StreamContext } from '../abi/context';
import { log } from '../abi/host';
import { LogLevel } from '../abi/types';
import { Block } from '../bytes/block';
import { Config } from './config';
import { Exchange } from './exchange';
import { defineMetrics } from './metrics';


@final
class Root extends RootContext {
  private config: Config = new Config();

  configure(configuration: Block): bool {
    const config = Config.parse(configuration);
    if (config.problem.length > 0) {
      log(LogLevel.Error, 'configuration refused: ' + config.problem);
      return false;
    }
    this.config = config;
    defineMetrics();
    return true;
  }

  createStream(id: u32): StreamContext {
    return new Exchange(id, this.config);
  }
}

/** Root context for a plugin. */
export function createRoot(id: u32): RootContext {
  return new Root(id);
}
