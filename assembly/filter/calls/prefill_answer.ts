// What became of the prefill leg: its answer is read, or named as a failure.

import { log, logs, now } from '../../abi/host';
import { HeaderMapKind, LogLevel } from '../../abi/types';
import { Dialect, Field, RequestBody } from '../../connectors/request_body';
import { Config } from '../config/config';
import { ResponseHead } from '../heads';
import { countPrefillFailure, recordPrefill } from '../outcome/metrics';
import { Brought } from '../rows/brought';
import { Capture, capture } from '../rows/capture';
import { Room } from '../rows/room';
import { isRetriedByEnvoy } from './prefill_call';

/** Why the prefill leg failed. */
export const enum Failure {
  None,
  /** Envoy could not send it. */
  NoHost,
  /** The connection was reset, or the reply is larger than Envoy takes. */
  Reset,
  Timeout,
  /** 502 or 503, which Envoy also makes of a connection that fails: it has tried again by then. */
  Unavailable,
  /** Another status that is neither 2xx nor 4xx. */
  Status,
  /** The reply is not JSON. */
  Unreadable,
  /** The bootstrap server does not name its ranks. */
  NoRanks,
  /** The rows do not fit into max_capture_bytes. */
  TooLarge,
  /** Decode must be told the length of the prompt, and the reply does not say it. */
  NoLength,
}

/** A call in flight to prefill, or to its bootstrap server. */
@final
export class SentCall {
  private readonly sentAt: u64 = now();

  constructor(
    private readonly config: Config,
    /** First token whose row the client asks for. */
    private readonly start: u64,
  ) {}

  /** A call that is sent now for a request. */
  static of(config: Config, asked: RequestBody): SentCall {
    return new SentCall(config, <u64>max<i64>(asked.integer(Field.StartLen), 0));
  }

  /** Milliseconds since the call was sent. */
  get elapsed(): u64 {
    return (now() - this.sentAt) / 1000000;
  }

  /**
   * What a call without an answer died of. Envoy says only that it broke off, so the clock decides; the
   * clocks of the VM and of Envoy's event loop may differ by a tenth of the time.
   */
  get failure(): Failure {
    const timeout = <u64>this.config.timeoutMs;
    return this.elapsed + timeout / 10 >= timeout ? Failure.Timeout : Failure.Reset;
  }

  /** The head of the answer to a leg; null when none came, where `headers` is 0. */
  legHead(headers: u32): ResponseHead | null {
    recordPrefill(this.elapsed);
    return headers == 0 ? null : ResponseHead.read(HeaderMapKind.CallResponseHeaders);
  }

  /** Reads the answer to a leg, of `size` bytes, into `brought`, where it is a good one. */
  takeReply(head: ResponseHead | null, size: u32, brought: Brought): Failure {
    if (head === null) return this.failure;
    if (head.status == 504) return Failure.Timeout;
    if (isRetriedByEnvoy(head.status)) return Failure.Unavailable;
    if (!head.good) return Failure.Status;
    if (head.encoded) return Failure.Unreadable;
    const connector = this.config.connector;
    // SGLang answers several prompts with a list, and a shared store may stand between its engines, too.
    const lists = connector.schema.dialect == Dialect.Sglang || !connector.needsParams;
    const room = new Room(this.config);
    const result = capture(size, lists, this.start, brought.examination, room, brought.captured);
    if (result == Capture.TooLarge) return Failure.TooLarge;
    if (result == Capture.Unreadable) return Failure.Unreadable;
    brought.count();
    return Failure.None;
  }
}

/** Whether the filter repeats a leg that failed so: Envoy cannot, and more than time was missing. */
export function isWorthARepeat(failure: Failure): bool {
  return failure == Failure.Reset || failure == Failure.Status || failure == Failure.Unreadable;
}

/** The status of the answer that tells the client of a failure. */
export function failureStatus(failure: Failure): i32 {
  return failure == Failure.Timeout ? 504 : 502;
}

/** What that answer says. */
export function failureMessage(failure: Failure): string {
  return 'prefill failed: ' + failureText(failure);
}

/** Counts and logs a failure after so many tries. */
export function reportFailure(failure: Failure, tries: i32): void {
  countPrefillFailure();
  if (logs(LogLevel.Warn)) {
    log(LogLevel.Warn, 'prefill failed (' + failureText(failure) + '), try ' + tries.toString());
  }
}

function failureText(failure: Failure): string {
  switch (failure) {
    case Failure.NoHost:
      return 'no healthy host';
    case Failure.Reset:
      return 'connection reset, or reply too large';
    case Failure.Timeout:
      return 'timeout';
    case Failure.Unavailable:
      return 'no connection, or status 502 or 503';
    case Failure.Status:
      return 'error status';
    case Failure.Unreadable:
      return 'the reply is not JSON';
    case Failure.NoRanks:
      return 'the bootstrap server does not tell its ranks';
    case Failure.TooLarge:
      return 'the prompt rows exceed max_capture_bytes';
    default:
      return 'the reply does not tell the length of the prompt';
  }
}
