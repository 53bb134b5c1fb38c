// What is common to the phases that send a leg of an exchange or take the answer to one.

import { bufferBytes, headerPairs } from '../../abi/host';
import { BufferKind, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { Block, fits } from '../../bytes/block';
import { decodeLeg } from '../../connectors/connector';
import { RequestBody } from '../../connectors/request_body';
import { Rewrite } from '../../connectors/rewrite';
import { Session } from '../../connectors/session';
import { Reason } from '../../routing/reason';
import { Failure, SentCall } from '../calls/prefill_answer';
import { ResponseHead } from '../heads';
import { Outcome } from '../outcome/outcome';
import { ClientRequest } from '../request/client_request';
import { Brought } from '../rows/brought';
import { Pass, passUnreadable, passWhole } from './pass';
import { Course } from './phase';

/**
 * Puts an edited body in place of the client's in Envoy's buffer. Returns false when that failed
 * and the exchange has ended, or when Envoy has answered the client itself.
 */
export function replaceRequest(course: Course, request: ClientRequest, rewrite: Rewrite): bool {
  const body = request.bytes();
  if (body === null) {
    course.answer(503, 'the request does not fit into the memory that the filter may hold', Reason.None);
    return false;
  }
  const phase = course.phase;
  const written = request.write(rewrite, body);
  body.free();
  if (course.phase !== phase) return false;
  if (!written) course.answer(502, 'the request could not be rewritten', Reason.None);
  return written;
}

/**
 * Makes the client's request decode's leg. With `promptStart` of 0 or more, decode is asked only
 * for the rows from that token on. Returns false in the cases in which `replaceRequest` does.
 */
export function sendDecodeLeg(
  course: Course,
  request: ClientRequest,
  asked: RequestBody,
  session: Session,
  brought: Brought,
  promptStart: i64,
): bool {
  const rewrite = decodeLeg(asked, course.config.connector, session, promptStart);
  const written = replaceRequest(course, request, rewrite);
  session.release();
  if (!written) return false;
  request.becomeDecodeHead();
  brought.expectDecode(asked);
  return true;
}

/**
 * Takes the answer to the prefill leg, of `size` bytes; `headers` is 0 when no answer came. A
 * client error goes to the client as it is and ends the exchange, since decode would say the same
 * of the request.
 */
export function takeAnswer(
  course: Course,
  sent: SentCall,
  headers: u32,
  size: u32,
  brought: Brought,
): Failure {
  const head = sent.legHead(headers);
  if (head !== null && !head.good) course.forgetAnswers();
  if (head === null || !head.isClientError) return sent.takeReply(head, size, brought);
  return passClientError(course, head.status, size) ? Failure.None : Failure.Reset;
}

/** Ends the exchange with prefill's client error. Returns false when its head cannot be read. */
function passClientError(course: Course, status: i32, size: u32): bool {
  const headers = headerPairs(HeaderMapKind.CallResponseHeaders);
  if (headers === null) return false;
  const read = fits(size) ? bufferBytes(BufferKind.CallResponseBody, 0, size) : null;
  const body = read === null ? Block.alloc(0) : read;
  course.passPrefillAnswer(status, headers, body);
  body.free();
  headers.free();
  return true;
}

/**
 * What `takeDecodeHead` returns when the body of the response is to be read. No callback returns
 * this.
 */
export const READ_BODY: i32 = -1;

/**
 * Takes the head of decode's response, and returns the status for its callback, or `READ_BODY`. An
 * error passes, and so does a response without a body. A body that cannot be read is treated as one
 * that cannot be merged.
 */
export function takeDecodeHead(course: Course, head: ResponseHead, brought: Brought, endOfStream: bool): i32 {
  course.ending.set(Outcome.Absent, Reason.None);
  if (head.status >= 500) course.forgetAnswers();
  if (endOfStream || !head.good) {
    brought.free();
    passWhole(course, new Pass(course, head.contentLength, false), endOfStream);
    return HeadersStatus.Continue;
  }
  if (!head.encoded) return READ_BODY;
  brought.free();
  return passUnreadable(course, new Pass(course, head.contentLength, false), Reason.Encoding);
}
