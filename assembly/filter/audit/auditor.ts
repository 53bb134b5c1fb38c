// The audits of one plugin configuration: which exchanges are audited, and when an engine is asked.
// No engine is asked in a callback of an exchange. Audits wait for the timer of the plugin, or for
// the end of an audit before them, so that the response of the exchange is with Envoy by then.

import { expectRootCall, forgetRootCall } from '../../abi/dispatch';
import { log, logs, randomBytes, startedCall } from '../../abi/host';
import { LogLevel, Status } from '../../abi/types';
import { Block } from '../../bytes/block';
import { RequestBody } from '../../connectors/request_body';
import { Prompt } from '../../routing/prompt';
import { AuditSettings, Config } from '../config/config';
import {
  countAudited,
  countAuditFailed,
  countAuditRequest,
  countAuditSkipped,
  reportHeld,
} from '../outcome/metrics';
import { ClientRequest } from '../request/client_request';
import { Audit, Finding } from './audit';
import { AuditRequest } from './audit_request';
import { Share } from './budget';

/** About what the VM needs for an audit beside its bytes. */
const OBJECTS: u64 = 4 << 10;
const dice: usize = memory.data(8, 8);


@final
export class Auditor {
  /** Audits whose exchange is over, and those of which the engine has been asked, by token. */
  private readonly waiting: Audit[] = [];
  private readonly asked: Map<u32, Audit> = new Map<u32, Audit>();

  /** The audits of the plugin whose root context has this id. */
  constructor(
    private readonly root: u32,
    private readonly config: Config,
    private readonly settings: AuditSettings,
  ) {}

  /**
   * Decides whether an exchange is audited, before anything of it is copied. `body` is the client's
   * (borrowed). Returns null when it is not, and what the caller then owns when it is.
   */
  choose(client: ClientRequest, asked: RequestBody, body: Block): Candidate | null {
    if (!isChosen(this.settings.fraction)) return null;
    const share = new Share();
    const bytes = OBJECTS + client.head.pairs.len + body.len;
    if (!share.grow(bytes, this.settings.maxBytes)) {
      countAuditSkipped();
      return null;
    }
    const request = AuditRequest.of(this.config, this.settings, client, asked, body);
    return new Candidate(this, request, share);
  }

  /** The response of a candidate has the rows of `prompt`. Takes them, if there is room. */
  take(request: AuditRequest, share: Share, prompt: Prompt): void {
    const spliced = prompt.giveRows();
    const bytes = spliced.heldBytes;
    // Rows are parked when the VM has no room for them.
    const parked = spliced.parkedBytes > 0;
    if (parked || !share.grow(2 * bytes, this.settings.maxBytes)) {
      countAuditSkipped();
      share.forget();
      spliced.free();
      return request.free();
    }
    this.waiting.push(new Audit(this.config, request, share, spliced, bytes));
  }

  onTick(): void {
    this.ask();
    reportHeld(true);
  }

  /** A call has ended; `headers` is 0 when no answer came. */
  onCallResponse(token: u32, headers: u32, size: u32): void {
    if (!this.asked.has(token)) return;
    const audit = this.asked.get(token);
    this.asked.delete(token);
    this.tell(audit, audit.judge(this.settings, headers, size));
    audit.free();
    this.ask();
    reportHeld(true);
  }

  /** Asks for the audits that wait, as many at a time as may be. */
  private ask(): void {
    while (this.waiting.length > 0 && this.asked.size < this.settings.maxCalls) {
      const audit = this.waiting.shift();
      countAuditRequest();
      if (audit.send(this.settings) != Status.Ok) {
        // The cluster has no host. The next tick is early enough for the next try.
        fail(audit.id, 'no healthy host');
        return audit.free();
      }
      const token = startedCall();
      expectRootCall(token, this.root);
      this.asked.set(token, audit);
    }
  }

  private tell(audit: Audit, finding: Finding): void {
    if (finding.failure.length > 0) return fail(audit.id, finding.failure);
    const found = finding.comparison;
    countAudited(found.rows, found.differing, found.wrong);
    const level = found.wrong > 0 ? LogLevel.Warn : LogLevel.Info;
    if (found.differing == 0 || !logs(level)) return;
    const cluster = this.settings.cluster;
    let text = 'audit: ' + found.differing.toString() + ' of ' + found.rows.toString() + ' rows differ from ';
    text += 'those of cluster ' + String.UTF8.decodeUnsafe(cluster.ptr, cluster.len);
    text += ', and ' + found.wrong.toString() + ' of these by more than numerics. The first ';
    text += found.wrong > 0 ? 'wrong one' : 'one';
    text += ' is that of token ' + found.token.toString();
    if (found.element > 0) text += ' of prompt ' + found.element.toString();
    if (found.layer >= 0) text += ', in layer ' + found.layer.toString();
    log(level, text + '. Request ' + audit.id);
  }

  /** Gives back what is waiting or asked for. No answer comes after this. */
  free(): void {
    for (let i = 0; i < this.waiting.length; i++) this.waiting[i].free();
    this.waiting.length = 0;
    const tokens = this.asked.keys();
    for (let i = 0; i < tokens.length; i++) {
      forgetRootCall(tokens[i]);
      this.asked.get(tokens[i]).free();
    }
    this.asked.clear();
    reportHeld(true);
  }
}

/** An exchange that is audited if its response is merged. */
@final
export class Candidate {
  /** Takes over what is handed to it, but for the auditor. */
  constructor(
    private readonly auditor: Auditor,
    private readonly request: AuditRequest,
    private readonly share: Share,
  ) {}

  /**
   * The response has been merged, and has left. The audit takes the rows of `prompt`, and the
   * candidate is of no use any more.
   */
  audit(prompt: Prompt): void {
    if (prompt.routing.came && prompt.rowCount > 0) this.auditor.take(this.request, this.share, prompt);
    else this.free();
  }

  free(): void {
    this.request.free();
    this.share.forget();
  }
}

/** Whether the dice choose an exchange, of which this fraction is audited. */
function isChosen(fraction: f64): bool {
  randomBytes(dice, 8);
  // The 53 highest bits are a number from 0 to before 1.
  return <f64>(load<u64>(dice) >> 11) / <f64>((<u64>1) << 53) < fraction;
}

function fail(id: string, why: string): void {
  countAuditFailed();
  if (logs(LogLevel.Warn)) log(LogLevel.Warn, 'audit failed: ' + why + '. Request ' + id);
}
