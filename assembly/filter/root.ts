// One configuration of the plugin, and the streams that run with it.

import { RootContext, StreamContext } from '../abi/context';
import { log, setTick } from '../abi/host';
import { LogLevel } from '../abi/types';
import { Block } from '../bytes/block';
import { Auditor } from './audit/auditor';
import { Config } from './config/config';
import { readConfig } from './config/read';
import { Exchange } from './exchange';
import { answerHeld } from './request/held_heads';
import { defineMetrics } from './outcome/metrics';

/**
 * How often, in milliseconds, the filter looks for requests that Envoy holds without a callback,
 * and how often where it also looks for audits that are due.
 */
const TICK_MS: u32 = 1000;
const AUDIT_TICK_MS: u32 = 100;


@final
class Root extends RootContext {
  private config: Config = new Config();
  private auditor: Auditor | null = null;

  configure(configuration: Block): bool {
    const config = new Config();
    const problem = readConfig(configuration, config);
    if (problem.length > 0) {
      log(LogLevel.Error, 'configuration refused: ' + problem);
      return false;
    }
    this.config = config;
    defineMetrics();
    this.onDelete();
    const audit = config.audit;
    this.auditor = audit === null ? null : new Auditor(this.id, config, audit);
    if (audit !== null) setTick(AUDIT_TICK_MS);
    else if (!config.passHeads) setTick(TICK_MS);
    return true;
  }

  onTick(): void {
    // This comes first: a call belongs to the context that is the effective one when it is made.
    const auditor = this.auditor;
    if (auditor !== null) auditor.onTick();
    answerHeld();
  }

  onCallResponse(token: u32, headers: u32, bodySize: u32): void {
    const auditor = this.auditor;
    if (auditor !== null) auditor.onCallResponse(token, headers, bodySize);
  }

  onDelete(): void {
    const auditor = this.auditor;
    if (auditor !== null) auditor.free();
    this.auditor = null;
  }

  createStream(id: u32): StreamContext {
    return new Exchange(id, this.config, this.auditor);
  }
}

/** Makes the root context of a plugin configuration. */
export function createRoot(id: u32): RootContext {
  return new Root(id);
}
