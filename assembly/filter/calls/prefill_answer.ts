// The answer to the prefill leg: it is read, or becomes a `Failure`.

import { log, logs, now, startedCall } from '../../abi/host';
import { HeaderMapKind, LogLevel } from '../../abi/types';
import { prefillStart } from '../../connectors/connector';
import { RequestBody } from '../../connectors/request_body';
import { Config } from '../config/config';
import { ResponseHead } from '../heads';
import { countPrefillFailure, recordPrefill } from '../outcome/metrics';
import { Brought } from '../rows/brought';
import { Capture, capture } from '../rows/capture';
import { CaptureRoom } from '../rows/room';
import { isRetriedSeen, isUnavailable } from './prefill_call';

/** Why the prefill leg failed. */
export const enum Failure {
  None,
  /** Envoy could not send the leg. */
  NoHost,
  /** The connection was reset, or the reply is larger than Envoy takes. */
  Reset,
  Timeout,
  /**
   * The status is 502 or 503. Envoy answers so itself when a connection fails, and by then it has
   * retried what it may retry.
   */
  Unavailable,
  /** The status is another one that is neither 2xx nor 4xx. */
  Status,
  /** The reply is not JSON. */
  Unreadable,
  /** The bootstrap server does not name its ranks. */
  NoRanks,
  /** Prefill does not tell how long a sequence of its models may be. */
  NoLimit,
  /** The rows do not fit into `max_capture_bytes`, nor into `max_parked_bytes`. */
  TooLarge,
  /** Decode must be told the length of the prompt, and prefill's reply does not have it. */
  NoLength,
}

/** A call that is in flight, to prefill or to its bootstrap server. */
@final
export class SentCall {
  /** The call's token, which is read first: it is lost with the next call to the host. */
  readonly token: u32 = startedCall();
  private readonly sentAt: u64 = now();

  constructor(
    private readonly config: Config,
    /** The first token whose row prefill is asked for. */
    private readonly start: u64,
  ) {}

  /** Makes the record of the call that was just started. */
  static of(config: Config, asked: RequestBody): SentCall {
    return new SentCall(config, prefillStart(asked));
  }

  /** How many milliseconds ago the call was sent. */
  get elapsed(): u64 {
    return (now() - this.sentAt) / 1000000;
  }

  /**
   * Why no answer came. Envoy says only that the call broke off, so the clock decides whether it
   * was the timeout. The clocks of the VM and of Envoy's event loop may differ by a tenth of that
   * time.
   */
  get failure(): Failure {
    const timeout = <u64>this.config.timeoutMs;
    return this.elapsed + timeout / 10 >= timeout ? Failure.Timeout : Failure.Reset;
  }

  /** The head of the answer to a leg; null when no answer came, for which `headers` is 0. */
  legHead(headers: u32): ResponseHead | null {
    recordPrefill(this.elapsed);
    return headers == 0 ? null : ResponseHead.read(HeaderMapKind.CallResponseHeaders);
  }

  /**
   * Reads the answer to a leg, of `size` bytes. If the answer is good, `brought` has what it
   * brings.
   */
  takeReply(head: ResponseHead | null, size: u32, brought: Brought): Failure {
    if (head === null) return this.failure;
    if (head.status == 504) return Failure.Timeout;
    if (isUnavailable(head.status)) return Failure.Unavailable;
    if (!head.good) return Failure.Status;
    if (head.encoded) return Failure.Unreadable;
    const room = new CaptureRoom(this.config);
    const lists = this.config.takesLists;
    const result = capture(size, lists, this.start, brought.examination, room, brought.captured);
    if (result == Capture.TooLarge) return Failure.TooLarge;
    if (result == Capture.Unreadable) return Failure.Unreadable;
    brought.count();
    return Failure.None;
  }
}

/**
 * Whether the filter sends a leg again that failed in this way. These are failures that Envoy does
 * not retry and that a second try may avoid. A leg that ran out of time is not sent again.
 */
export function isWorthARepeat(failure: Failure, config: Config): bool {
  if (failure == Failure.Unavailable) return !isRetriedSeen(config);
  return failure == Failure.Reset || failure == Failure.Status || failure == Failure.Unreadable;
}

/** The status with which the filter tells the client of a failure. */
export function failureStatus(failure: Failure): i32 {
  return failure == Failure.Timeout ? 504 : 502;
}

/** The message with which the filter tells the client of a failure. */
export function failureMessage(failure: Failure): string {
  return 'prefill failed: ' + failureText(failure);
}

/** Counts a failure, and logs it with the number of tries so far. */
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
    case Failure.NoLimit:
      return 'its list of models does not tell max_model_len, which can be set in the configuration';
    case Failure.TooLarge:
      return 'the prompt rows exceed max_capture_bytes';
    default:
      return 'the reply does not tell the length of the prompt';
  }
}
