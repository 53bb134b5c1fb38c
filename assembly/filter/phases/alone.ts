// Decode serves a request alone, because P/D does not serve the request or its prefill leg came to
// nothing. Decode then forwards every token itself, so its rows are right as they are, and they
// leave unchanged once they have been examined.

import { randomBytes } from '../../abi/host';
import { HeaderMapKind, HeadersStatus } from '../../abi/types';
import { canSalt, localLeg } from '../../connectors/connector';
import { RequestBody } from '../../connectors/request_body';
import { Dialect } from '../../connectors/schema';
import { RANDOM_BYTES, Session } from '../../connectors/session';
import { Alone as AloneRules, CachedRule } from '../../routing/decode_response';
import { Reason } from '../../routing/reason';
import { Config } from '../config/config';
import { ResponseHead } from '../heads';
import { Outcome } from '../outcome/outcome';
import { ClientRequest } from '../request/client_request';
import { Brought } from '../rows/brought';
import { openResponse } from './hold';
import { replaceRequest } from './legs';
import { Pass, passUnreadable, passWhole } from './pass';
import { Course, Phase } from './phase';

/**
 * Sends the request to decode alone. The request is as the client sent it, with two changes:
 * parameters that only the filter may set are removed, and a salt may keep decode from using what
 * its prefix cache has of the prompt. The request is freed, and `brought` is handed to the next
 * phase.
 */
export function serveAlone(
  course: Course,
  request: ClientRequest,
  asked: RequestBody,
  brought: Brought,
): void {
  const config = course.config;
  const session = new Session();
  course.ending.set(Outcome.Local, Reason.None);
  const fresh = config.freshLocal && canSalt(asked);
  if (fresh) randomBytes(session.randomPtr, RANDOM_BYTES);
  const rewrite = localLeg(asked, config.connector, session, fresh);
  const written = rewrite.empty || replaceRequest(course, request, rewrite);
  session.release();
  if (!written) return;
  if (!config.passHeads) request.askForPlainResponse();
  brought.expectAlone(asked, new AloneRules(cachedRule(config, asked, fresh), asked.rowStart, true));
  request.free();
  course.enter(new Alone(course, brought, true));
}

/**
 * What decode's `cached_tokens` must say so that the rows of a request that it serves alone are its
 * own.
 */
function cachedRule(config: Config, asked: RequestBody, fresh: bool): CachedRule {
  // Choices and prompts of one request share its salt. vLLM puts a block into the prefix cache when
  // it schedules the block, and the next choice hits it in the same step
  // (vllm/v1/core/kv_cache_manager.py, allocate_slots).
  if (fresh && !config.connector.sharesStore) {
    return asked.choices > 1 ? CachedRule.Any : CachedRule.NoHit;
  }
  // For several prompts vLLM reports the `cached_tokens` of the last one only. In a list of
  // SGLang's, each element has its own.
  const one = asked.batch <= 1 || asked.schema.dialect == Dialect.Sglang;
  return one ? CachedRule.Zero : CachedRule.Never;
}

/** Decode serves the request alone, and the head of its response is awaited. */
@final
export class Alone extends Phase {
  /**
   * Takes over what is known. `holds`: the plugin has shown that it may hold a head, so the head of
   * the response may be held, too.
   */
  constructor(
    course: Course,
    private readonly brought: Brought,
    private readonly holds: bool,
  ) {
    super(course);
  }

  /**
   * The phase for a request to a path that P/D does not serve. It is not known what its body asks
   * for.
   */
  static ofOtherPath(course: Course): Alone {
    return Alone.unread(course, false);
  }

  /** The phase for a request whose body is not a JSON object. */
  static ofNoRequest(course: Course): Alone {
    return Alone.unread(course, true);
  }

  private static unread(course: Course, holds: bool): Alone {
    const brought = new Brought(course.config);
    brought.expected.alone = new AloneRules(CachedRule.Zero, -1, false);
    return new Alone(course, brought, holds);
  }

  get awaitsHead(): bool {
    return true;
  }

  onResponseHeaders(endOfStream: bool): i32 {
    const course = this.course;
    const brought = this.brought;
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    course.ending.set(Outcome.Local, Reason.None);
    // Where the filter has not read the request, the response may be of any kind. It is read only
    // if its head says that it is JSON or an event stream.
    const readable = brought.expected.alone!.counted || ((head.json || head.events) && !head.encoded);
    if (endOfStream || !head.good || !readable) {
      brought.free();
      passWhole(course, new Pass(course, head.contentLength, false), endOfStream);
      return HeadersStatus.Continue;
    }
    if (head.encoded) {
      brought.free();
      return passUnreadable(course, new Pass(course, head.contentLength, false), Reason.Encoding);
    }
    return openResponse(course, head, brought, this.holds);
  }

  free(): void {
    this.brought.free();
  }
}

/**
 * A request without a body, or with a method that P/D does not serve. Its response passes unread.
 */
@final
export class Aside extends Phase {
  get awaitsHead(): bool {
    return true;
  }

  onResponseHeaders(endOfStream: bool): i32 {
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    this.course.ending.set(Outcome.Local, Reason.None);
    passWhole(this.course, new Pass(this.course, head.contentLength, false), endOfStream);
    return HeadersStatus.Continue;
  }

  free(): void {}
}
