// An audit: an engine is asked once more for the prompt of an exchange, and the rows that it gives
// are compared with those that the response had.

import { HeaderMapKind, Status } from '../../abi/types';
import { Examination } from '../../routing/examination';
import { Kind, Prompt } from '../../routing/prompt';
import { Reason, reasonToken } from '../../routing/reason';
import { RowComparison } from '../../routing/row_comparison';
import { AuditSettings, Config } from '../config/config';
import { ResponseHead } from '../heads';
import { Capture, Captured, capture } from '../rows/capture';
import { AuditRequest } from './audit_request';
import { AnswerRoom, Share } from './budget';

/** What an audit has found. */
@final
export class Finding {
  /** Why nothing could be compared; empty when rows have been compared. */
  failure: string = '';

  constructor(readonly comparison: RowComparison) {}
}


@final
export class Audit {
  /**
   * Takes over what is handed to it. `room`: how many bytes of `share` are for the answer's rows.
   */
  constructor(
    private readonly config: Config,
    private readonly request: AuditRequest,
    private readonly share: Share,
    private readonly spliced: Prompt,
    private readonly room: u64,
  ) {}

  /** The id of the exchange. */
  get id(): string {
    return this.request.id;
  }

  /** Asks the engine. With any status but `Ok` no answer will come. */
  send(settings: AuditSettings): Status {
    return this.request.send(settings);
  }

  /** Compares the rows of the answer, of `size` bytes; `headers` is 0 when no answer came. */
  judge(settings: AuditSettings, headers: u32, size: u32): Finding {
    const model = this.config.model;
    const finding = new Finding(new RowComparison(model === null ? 0 : model.topK));
    if (headers == 0) {
      finding.failure = 'no whole answer: a timeout, a reset, or more bytes than Envoy takes';
      return finding;
    }
    const head = ResponseHead.read(HeaderMapKind.CallResponseHeaders);
    if (!head.good) finding.failure = 'status ' + head.status.toString();
    else if (head.encoded) finding.failure = 'the answer has a content-encoding';
    else this.read(settings, size, finding);
    return finding;
  }

  private read(settings: AuditSettings, size: u32, finding: Finding): void {
    const config = this.config;
    const captured = new Captured();
    captured.prompt.start = this.request.start;
    captured.prompt.decodeForwardsLast = config.connector.decodeForwardsLast;
    const examination = new Examination(config.rowCheck, config.model);
    const room = new AnswerRoom(this.room, settings.maxBytes);
    const result = capture(size, config.takesLists, this.request.start, examination, room, captured);
    if (result == Capture.TooLarge) finding.failure = 'its rows exceed audit.max_bytes';
    else if (result == Capture.Unreadable) finding.failure = 'the answer is not JSON';
    else if (isCached(captured.prompt)) finding.failure = 'the engine took tokens out of a cache';
    else {
      const reason = finding.comparison.compare(this.spliced, captured.prompt);
      if (reason != Reason.None)
        finding.failure = 'its rows can not be compared, reason ' + reasonToken(reason);
    }
    captured.free();
    examination.free();
  }

  free(): void {
    this.request.free();
    this.spliced.free();
    this.share.forget();
  }
}

/**
 * Whether a reply says that tokens of the prompt came out of a cache, and so have no rows of their
 * own.
 */
function isCached(prompt: Prompt): bool {
  const cached = prompt.value(Kind.CachedTokens);
  return cached !== null && (cached.text.length > 1 || cached.text.first != 0x30);
}
