// One configuration of the plugin, and the streams that run with it.

import { RootContext, StreamContext } from '../abi/context';
import { log, setTick } from '../abi/host';
import { LogLevel } from '../abi/types';
import { Block } from '../bytes/block';
import { Config } from './config/config';
import { readConfig } from './config/read';
import { Exchange } from './exchange';
import { answerHeld } from './request/held_heads';
import { defineMetrics } from './outcome/metrics';

/**
 * How often, in milliseconds, the filter looks for requests that Envoy holds without a callback.
 */
const TICK_MS: u32 = 1000;


@final
class Root extends RootContext {
  private config: Config = new Config();

  configure(configuration: Block): bool {
    const config = new Config();
    const problem = readConfig(configuration, config);
    if (problem.length > 0) {
      log(LogLevel.Error, 'configuration refused: ' + problem);
      return false;
    }
    this.config = config;
    defineMetrics();
    if (!config.passHeads) setTick(TICK_MS);
    return true;
  }

  onTick(): void {
    answerHeld();
  }

  createStream(id: u32): StreamContext {
    return new Exchange(id, this.config);
  }
}

/** Makes the root context of a plugin configuration. */
export function createRoot(id: u32): RootContext {
  return new Root(id);
}
