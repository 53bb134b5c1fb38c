// envoy/tracing/envoy.yaml: an exchange in the spans that Envoy exports.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ROOT } from '../../tools/paths.mjs';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { freePort } from '../deployments/ports.ts';
import type { EngineRequest } from '../scenario.ts';
import { startCollector, type Collector, type Span } from './collector.ts';
import { launchEnvoy, type Envoy } from './launcher.ts';
import { KNOWS_SPAN_ID } from './version.ts';
import { waitFor } from './wait.ts';

const EXAMPLE = 'envoy/tracing/envoy.yaml';
const CLIENT = { trace: '4bf92f3577b34da6a3ce929d0e0e4736', id: '00f067aa0ba902b7' };
const BODY = { prompt: 'the prompt of a span', max_tokens: 4 };
/** Kinds of spans in OTLP. */
const SERVER = 2;
const CLIENT_KIND = 3;

describe.runIf(KNOWS_SPAN_ID)(EXAMPLE, () => {
  let engines: Engines;
  let collector: Collector;
  let envoy: Envoy;
  let port: number;

  beforeAll(async () => {
    [engines, collector, port] = await Promise.all([startEngines(), startCollector(), freePort()]);
    const text = edited(readFileSync(join(ROOT, EXAMPLE), 'utf8'), {
      // By default, spans are kept for five seconds.
      'static_layer:\n': 'static_layer:\n        tracing.opentelemetry.flush_interval_ms: 10\n',
      '{ address: 127.0.0.1, port_value: 9901 }': '{ address: 127.0.0.1, port_value: 0 }',
      '{ address: 0.0.0.0, port_value: 10000 }': `{ address: 127.0.0.1, port_value: ${port} }`,
      '{ address: 127.0.0.1, port_value: 8100 }': `{ address: 127.0.0.1, port_value: ${engines.prefillPort} }`,
      '{ address: 127.0.0.1, port_value: 8200 }': `{ address: 127.0.0.1, port_value: ${engines.decodePort} }`,
      '{ address: 127.0.0.1, port_value: 4317 }': `{ address: 127.0.0.1, port_value: ${collector.port} }`,
    });
    envoy = await launchEnvoy({ config: () => text });
  });
  afterAll(async () => {
    await envoy?.close();
    await collector?.close();
    await engines?.close();
  });

  /** Sends a request, and returns its spans and what each engine was sent. */
  async function exchange(headers: Record<string, string> = {}) {
    const before = collector.spans.length;
    const answer = await ask(port, BODY, undefined, headers);
    expect(answer.status, answer.text.slice(0, 500)).toBe(200);
    expect(answer.outcome).toMatch(/^merged; rows=/);
    const [prefill, decode] = [engines.prefill.requests.at(-1)!, engines.decode.requests.at(-1)!];
    const spans = await waitFor('the spans of both legs and of the exchange have come', () => {
      const own = collector.spans.slice(before);
      return own.length >= 3 ? own : undefined;
    });
    expect(spans).toHaveLength(3);
    const find = (what: string, is: (span: Span) => boolean) => {
      const found = spans.filter(is);
      expect(
        found,
        `${what} in ${JSON.stringify(spans, (_, v) => (typeof v === 'bigint' ? String(v) : v))}`,
      ).toHaveLength(1);
      return found[0]!;
    };
    return {
      prefill: find('the prefill leg', ({ name }) => name === 'prefill leg'),
      decode: find('the decode leg', ({ kind }) => kind === CLIENT_KIND),
      whole: find('the exchange', ({ name, kind }) => kind === SERVER && name !== 'prefill leg'),
      sent: { prefill: parentIn(prefill), decode: parentIn(decode) },
    };
  }

  test('a client that traces: the exchange hangs under its span, and both legs under the exchange', async () => {
    const headers = { traceparent: `00-${CLIENT.trace}-${CLIENT.id}-01`, tracestate: 'vendor=1' };
    const { whole, prefill, decode, sent } = await exchange(headers);
    expect([whole.trace, prefill.trace, decode.trace]).toEqual([CLIENT.trace, CLIENT.trace, CLIENT.trace]);
    expect(whole.parent).toBe(CLIENT.id);
    expect([prefill.parent, decode.parent]).toEqual([whole.id, whole.id]);
    expect(sent).toEqual({
      prefill: { trace: CLIENT.trace, id: prefill.id, flags: '01', state: 'vendor=1' },
      decode: { trace: CLIENT.trace, id: decode.id, flags: '01', state: 'vendor=1' },
    });
  });

  test('a client that does not: the exchange is the first span of a trace', async () => {
    const { whole, prefill, decode, sent } = await exchange();
    expect(whole.parent).toBe('');
    expect([prefill.trace, decode.trace]).toEqual([whole.trace, whole.trace]);
    expect([prefill.parent, decode.parent]).toEqual([whole.id, whole.id]);
    expect([sent.prefill.id, sent.decode.id]).toEqual([prefill.id, decode.id]);
  });

  test('the legs follow each other within the exchange', async () => {
    const { whole, prefill, decode } = await exchange();
    const times = [whole.start, prefill.start, prefill.end, decode.start, decode.end, whole.end];
    expect(times).toEqual([...times].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0)));
    expect(decode.attributes['upstream_cluster.name'] ?? decode.attributes['upstream_cluster']).toBe(
      'decode',
    );
  });

  test('a client whose trace is not sampled: no span is exported, and the engines are told so', async () => {
    const before = collector.spans.length;
    const trace = 'a'.repeat(32);
    const headers = { traceparent: `00-${trace}-${CLIENT.id}-00` };
    const answer = await ask(port, BODY, undefined, headers);
    expect(answer.outcome).toMatch(/^merged; rows=/);
    const sent = [engines.prefill.requests.at(-1)!, engines.decode.requests.at(-1)!].map(parentIn);
    expect(sent.map(({ trace: of, flags }) => [of, flags])).toEqual([
      [trace, '00'],
      [trace, '00'],
    ]);
    // The spans of a later exchange come after those of this one.
    const { whole } = await exchange();
    expect(collector.spans.slice(before).filter((span) => span.trace !== whole.trace)).toEqual([]);
  });
});

/** The `traceparent` of a request that an engine was sent. */
function parentIn({ headers }: EngineRequest) {
  const of = (wanted: string) => headers.find(([name]) => name === wanted)?.[1];
  const [version, trace, id, flags] = (of('traceparent') ?? '').split('-');
  expect(version).toBe('00');
  return { trace, id, flags, state: of('tracestate') };
}

function edited(text: string, changes: Record<string, string>): string {
  return Object.entries(changes).reduce((edit, [from, to]) => {
    expect(edit.split(from), from).toHaveLength(2);
    return edit.replace(from, to);
  }, text);
}
