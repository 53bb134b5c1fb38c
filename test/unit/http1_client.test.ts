import { expect, test } from 'vitest';
import { ResponseParser } from '../envoy/http1.ts';

const CHUNKED =
  'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n4\r\nab\r\n\r\n1;ext=1\r\nc\r\n0\r\nX-T: end\r\n\r\n';
const FIXED = 'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc';

function parse(pieces: string[], { method = 'GET', ended = false } = {}) {
  const parser = new ResponseParser(method);
  for (const piece of pieces) parser.push(Buffer.from(piece, 'latin1'));
  if (ended) parser.end();
  const { body, ...rest } = parser.response();
  return { ...rest, body: body.toString('latin1') };
}

test('reads a chunked response with trailers, split at any byte', () => {
  for (let at = 0; at <= CHUNKED.length; at++) {
    expect(parse([CHUNKED.slice(0, at), CHUNKED.slice(at)])).toEqual({
      status: 200,
      headers: [
        ['transfer-encoding', 'chunked'],
        ['x-a', '1'],
      ],
      body: 'ab\r\nc',
      trailers: [['x-t', 'end']],
      complete: true,
    });
  }
});

test('a response that is cut anywhere is incomplete', () => {
  for (const message of [CHUNKED, FIXED]) {
    for (let at = 0; at < message.length; at++) {
      expect(parse([message.slice(0, at)], { ended: true }).complete, `cut at ${at}`).toBe(false);
    }
    expect(parse([message], { ended: true }).complete).toBe(true);
  }
});

test('bytes behind the end are an error', () => {
  expect(parse([`${FIXED}d`]).complete).toBe(false);
  expect(parse([`${CHUNKED}0\r\n`]).complete).toBe(false);
});

test('a body without length or chunks ends with the connection', () => {
  const message = 'HTTP/1.1 200 OK\r\n\r\nabc';
  expect(parse([message]).complete).toBe(false);
  expect(parse([message], { ended: true })).toMatchObject({ body: 'abc', complete: true });
});

test('responses without a body are complete with their head', () => {
  expect(parse(['HTTP/1.1 204 No Content\r\n\r\n']).complete).toBe(true);
  expect(parse(['HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n'], { method: 'HEAD' }).complete).toBe(true);
});

test('an interim response is not the response', () => {
  expect(parse([`HTTP/1.1 100 Continue\r\n\r\n${FIXED}`])).toMatchObject({
    status: 200,
    body: 'abc',
    complete: true,
  });
});

test.each([
  'nonsense\r\n\r\n',
  'HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n',
  CHUNKED.replace('4\r\n', '5\r\n'),
])('a malformed response is incomplete: %j', (message) => {
  expect(parse([message], { ended: true }).complete).toBe(false);
});
