// Decode serves a request alone: it is none that P/D serves, or its prefill leg came to nothing. Decode
// forwards every token then, so its rows are right as they are, and leave so once they were examined.

import { randomBytes } from '../../abi/host';
import { HeaderMapKind, HeadersStatus } from '../../abi/types';
import { canSalt, localLeg } from '../../connectors/connector';
import { Dialect, Field, RequestBody } from '../../connectors/request_body';
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
 * The request goes to decode alone, as the client sent it but for parameters that only the filter may
 * set, and for the salt that keeps decode from using what its prefix cache has of the prompt. The request is
 * given back then, and `brought` goes to the next phase.
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
  const start = max(asked.integer(Field.PromptStart), asked.integer(Field.StartLen));
  brought.expectAlone(asked, new AloneRules(cachedRule(config, asked, fresh), start, true));
  request.free();
  course.enter(new Alone(course, brought, true));
}

/** What decode's `cached_tokens` must say so that the rows of a request that it serves alone are its own. */
function cachedRule(config: Config, asked: RequestBody, fresh: bool): CachedRule {
  // Samples and prompts of one request share its salt: vLLM puts a block into the prefix cache when it is
  // scheduled, and the next sample hits it in the same step (vllm/v1/core/kv_cache_manager.py,
  // allocate_slots).
  if (fresh && !config.connector.sharesStore) {
    return asked.choices > 1 ? CachedRule.Any : CachedRule.NoHit;
  }
  // Of several prompts vLLM reports the last one's only; SGLang's elements have one each.
  const one = asked.batch <= 1 || asked.schema.dialect == Dialect.Sglang;
  return one ? CachedRule.Zero : CachedRule.Never;
}

/** Decode's response is awaited. */
@final
export class Alone extends Phase {
  /**
   * Takes over what is known. `holds`: the plugin has shown that it may hold a head, so that the response's
   * may be held, too.
   */
  constructor(
    course: Course,
    private readonly brought: Brought,
    private readonly holds: bool,
  ) {
    super(course);
  }

  /** A request to a path that P/D does not serve: what its body asks for is not known. */
  static ofOtherPath(course: Course): Alone {
    return Alone.unread(course, false);
  }

  /** A request whose body is no JSON object. */
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
    // Responses of other paths, and to bodies that are no request, are of every kind.
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

/** A request without a body, or by another method: its response passes unread. */
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
