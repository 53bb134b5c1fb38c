// What clients of HTTP/2 have when the filter resets a stream. Up to Envoy 1.36 the reset has no
// error, and Node and curl take it for the end of the body: so what has left must never look whole.
// `npm run test:envoys` sets TEST_CURL, with which curl is asked, too.

import { once } from 'node:events';
import { connect } from 'node:http2';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { run } from '../../tools/run.mjs';
import { decodeBody, encoded, FULL, GENERATE, GOOD_PREFILL, quoted, REQUEST } from '../scenarios/messages.ts';
import { createPlant, http, rawEngine, type Plant } from './plant.ts';
import { RESETS_WITHOUT_ERROR } from './version.ts';
import { waitFor } from './wait.ts';

interface Got {
  body: string;
  /** Whether the client takes the body for whole. */
  whole: boolean;
}

type Client = (url: string, body: string) => Promise<Got>;

const node: Client = async (url, body) => {
  const { origin, pathname } = new URL(url);
  const session = connect(origin);
  const stream = session.request({ ':method': 'POST', ':path': pathname });
  let failed = false;
  stream.on('error', () => (failed = true));
  let got = '';
  stream.setEncoding('utf8').on('data', (piece: string) => (got += piece));
  stream.end(body);
  await once(stream, 'close').catch(() => undefined);
  session.close();
  return { body: got, whole: !failed };
};

const curl: Client = async (url, body) => {
  const args = ['-s', '--http2-prior-knowledge', '-H', 'content-type: application/json', '-d', body, url];
  const { code, output } = await run('curl', args);
  if (code === 127) throw new Error('curl is missing');
  return { body: output, whole: code === 0 };
};

const ASKED = process.env.TEST_CURL ? { node, curl } : { node };

// ---- the exchanges

interface Broken {
  name: string;
  path: string;
  request: string;
  /** What decode writes, and what it writes when a part of the response has reached the client. */
  decode: [string, string];
}

const BAD = quoted(encoded({ ...FULL, layers: 3 }));
const TWO = decodeBody([quoted(encoded(FULL)), BAD]);
const AT = TWO.lastIndexOf('{"index"');
const event = (array: string) => `data: ${decodeBody([array])}\n\n`;
const ofEvents = (text: string) => http(text, null).replace('application/json', 'text/event-stream');

const BROKEN: Broken[] = [
  {
    name: 'a document',
    path: '/v1/completions',
    request: REQUEST.replace('}', ',"n":2}'),
    decode: [http(TWO.slice(0, AT), null), TWO.slice(AT)],
  },
  {
    name: 'events',
    path: GENERATE,
    request: '{"token_ids":[1],"sampling_params":{},"stream":true}',
    decode: [ofEvents('data: {"choices":[]}\n\n'), `${event(BAD)}data: [DONE]\n\n`],
  },
];

const looksWhole = (text: string) => {
  if (text.includes('[DONE]')) return true;
  try {
    return JSON.parse(text) !== undefined;
  } catch {
    return false;
  }
};

let of: Plant;
let decode = BROKEN[0]!.decode;
const open: { close(): Promise<void> }[] = [];

beforeAll(async () => {
  const sent = async () => {
    const name = 'http.ingress.downstream_cx_tx_bytes_total';
    return (await of.stats(name))[name] ?? 0;
  };
  const prefill = await rawEngine((socket) => socket.write(http(GOOD_PREFILL)));
  const engine = await rawEngine(async (socket) => {
    const before = await sent();
    const [first, second] = decode;
    socket.write(first);
    // Envoy has sent its settings by now, so that more bytes are those of the response.
    await waitFor('A part has left', async () => ((await sent()) > before + 60 ? true : undefined));
    socket.end(second);
  });
  of = await createPlant({
    ...{ prefillPort: prefill.port, decodePort: engine.port, config: { hold_bytes: 0 } },
  });
  open.push(of, prefill, engine);
});
afterAll(async () => {
  for (const each of open) await each.close();
});

test.each(
  BROKEN.flatMap((broken) => Object.entries(ASKED).map(([client, ask]) => ({ ...broken, client, ask }))),
)('$client and $name whose stream is reset', async ({ path, request, decode: says, client, ask }) => {
  decode = says;
  const got = await ask(`http://127.0.0.1:${of.port}${path}`, request);
  expect(got.body.length).toBeGreaterThan(10);
  expect(looksWhole(got.body)).toBe(false);
  // Node takes a reset without an error for the end, and so does curl 7.88; others tell the two
  // apart.
  const fooled = RESETS_WITHOUT_ERROR && (client === 'node' || (client === 'curl' && got.whole));
  expect(got.whole).toBe(fooled);
  const rejected = (await of.log()).at(-1);
  expect(rejected?.routed_experts).toMatch(/^rejected; reason=/);
});
