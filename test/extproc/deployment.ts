/**
 * llm-d without a mesh: `envoy/llm-d/envoy.yaml` with other addresses, an endpoint picker, and
 * simulated engines.
 */

import { readFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { ROOT } from '../../tools/paths.mjs';
import { createEngine, type SequentialOptions, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { serveBoth } from '../engine/server.ts';
import { sendHttp1 } from '../envoy/http1.ts';
import { sendHttp2 } from '../envoy/http2.ts';
import { launchEnvoy, type Envoy } from '../envoy/launcher.ts';
import type { Header, Protocol } from '../scenario.ts';
import { startPicker, type Picker } from './picker.ts';

export const COMPLETIONS = '/v1/completions';
export const GENERATE = '/inference/v1/generate';

export interface Layout {
  /**
   * `apart`: the filter has a listener of its own behind the picker's, as in the example.
   * `together`: it stands behind the picker in one listener, as a gateway's control plane puts it.
   */
  filters: 'apart' | 'together';
  /** How prefill's engine is found: the picker names it, or its address is in the cluster. */
  prefill: 'named' | 'fixed';
  /** The protocol of the engines. */
  upstream: Protocol;
  /** Keys of the filter's configuration that differ from the example's. */
  config: Record<string, unknown>;
}

export interface Answer {
  status: number;
  headers: Header[];
  /** The outcome in the header or the trailer. */
  outcome: string | undefined;
  body: Buffer;
  complete: boolean;
}

export interface Deployment {
  readonly picker: Picker;
  readonly envoy: Envoy;
  readonly prefill: SimulatedEngine;
  readonly decode: SimulatedEngine;
  send(path: string, body: object, protocol?: Protocol): Promise<Answer>;
  /** What Envoy has written to standard output: its access log. */
  output(): string;
  close(): Promise<void>;
}

/** Envoy may take this long to answer, under load. */
const PATIENCE_MS = 60_000;

const EXAMPLE = 'envoy/llm-d/envoy.yaml';
const SHIPPED: Layout = { filters: 'apart', prefill: 'named', upstream: 'http1', config: {} };

export async function deploy(
  engine: Partial<SequentialOptions>,
  changes: Partial<Layout> = {},
): Promise<Deployment> {
  const layout = { ...SHIPPED, ...changes };
  const shared = { fleet: new Fleet(), ...engine };
  const prefill = createEngine({ ...shared, role: 'prefill' });
  const decode = createEngine({ ...shared, role: 'decode' });
  const servers = [await serveBoth(prefill), await serveBoth(decode)];
  const [prefillAt, decodeAt] = servers.map(
    (server) => `127.0.0.1:${layout.upstream === 'http1' ? server.http1Port : server.http2Port}`,
  ) as [string, string];
  const picker = await startPicker(() => ({
    decode: decodeAt,
    ...(layout.prefill === 'named' ? { prefill: prefillAt } : {}),
  }));
  const port = await freePort();
  let output = '';
  const envoy = await launchEnvoy({
    config: () => configured(layout, { port, picker: picker.port, prefill: prefillAt }),
    args: ['--file-flush-interval-msec', '5'],
    onOutput: (text) => (output += text),
  });
  return {
    picker,
    envoy,
    prefill,
    decode,
    output: () => output,
    async send(path, body, protocol = 'http1') {
      const bytes = Buffer.from(JSON.stringify(body));
      const headers: Header[] = [
        ['content-type', 'application/json'],
        ['content-length', String(bytes.length)],
        // Nobody but the picker may choose.
        ['x-prefiller-host-port', '127.0.0.1:1'],
        ['x-gateway-destination-endpoint', '127.0.0.1:1'],
      ];
      const request = { method: 'POST', path, headers, chunks: [bytes] };
      const send = protocol === 'http1' ? sendHttp1 : sendHttp2;
      const reply = await send({ port, request, timeoutMs: PATIENCE_MS, arrived: async () => {} });
      const { status, complete } = reply;
      const told = [...reply.headers, ...reply.trailers].find(([name]) => name === 'x-routed-experts');
      return { status, headers: reply.headers, body: reply.body, complete, outcome: told?.[1] };
    },
    async close() {
      await envoy.close();
      await picker.close();
      await Promise.all(servers.map((server) => server.close()));
    },
  };
}

/** What one engine that does both would answer, as the client must get it. */
export function oracle(engine: Partial<SequentialOptions>, path: string, body: object): Buffer {
  const both = createEngine({ ...engine, fleet: new Fleet(), role: 'oracle' });
  const headers: Header[] = [['content-type', 'application/json']];
  const { chunks } = both({ method: 'POST', path, headers, body: Buffer.from(JSON.stringify(body)) });
  return Buffer.concat(chunks);
}

interface Addresses {
  port: number;
  picker: number;
  prefill: string;
}

/** The example with the addresses of a test. Other layouts than the shipped one change more. */
function configured(layout: Layout, at: Addresses): string {
  const [, prefillPort] = at.prefill.split(':');
  const text = edited(readFileSync(join(ROOT, EXAMPLE), 'utf8'), {
    '{ address: 127.0.0.1, port_value: 9901 }': '{ address: 127.0.0.1, port_value: 0 }',
    '{ address: 0.0.0.0, port_value: 10000 }': `{ address: 127.0.0.1, port_value: ${at.port} }`,
    '{ address: 127.0.0.1, port_value: 9002 }': `{ address: 127.0.0.1, port_value: ${at.picker} }`,
    '10.0.0.0/8:8000': `127.0.0.0/8:${prefillPort}`,
  });
  return withLayout(text, layout, at);
}

const WASM = / {18}- name: envoy\.filters\.http\.wasm\n(?: {20}.*\n)+/;
const ROUTER = '                  - name: envoy.filters.http.router\n';
const NAMED = `      type: ORIGINAL_DST
      lb_policy: CLUSTER_PROVIDED
      original_dst_lb_config: { use_http_header: true }
`;

function withLayout(text: string, layout: Layout, at: Addresses): string {
  const { connector, decode_rows, prefill } = shippedConfig(text);
  const fixed = layout.prefill === 'fixed';
  const own = { prefill: fixed ? { cluster: 'prefill' } : prefill, connector, decode_rows };
  if (Object.keys(layout.config).length > 0 || fixed) {
    const value = JSON.stringify({ ...own, ...layout.config });
    text = text.replace(CONFIGURATION, (_, indent: string) => `${indent}value: '${value}'\n`);
  }
  if (layout.filters === 'together') {
    const [filter] = WASM.exec(text)!;
    // The first router is the one behind the picker.
    text = text.replace(filter, '').replace(ROUTER, () => filter + ROUTER);
    text = edited(text, { 'cluster: legs\n': 'cluster: decode\n' });
    text = edited(text, { '- match: { prefix: / }\n                          route:\n': BUFFERED });
  }
  if (fixed) {
    const [address, port_value] = at.prefill.split(':');
    const endpoint = { address: { socket_address: { address, port_value: Number(port_value) } } };
    const load_assignment = { cluster_name: 'prefill', endpoints: [{ lb_endpoints: [{ endpoint }] }] };
    text = edited(text, {
      [NAMED]: `      type: STATIC\n      load_assignment: ${JSON.stringify(load_assignment)}\n`,
    });
  }
  if (layout.upstream === 'http2') {
    text = edited(text, {
      'explicit_http_config: { http_protocol_options: {} }':
        'explicit_http_config: { http2_protocol_options: {} }',
    });
  }
  return text;
}

const BUFFERED = `- match: { prefix: / }
                          request_body_buffer_limit: 67108864
                          route:
`;
const CONFIGURATION = /( +)value: \|\n((?:\1 .*\n)+)/;

const shippedConfig = (text: string) =>
  JSON.parse(CONFIGURATION.exec(text)![2]!) as Record<'prefill' | 'connector' | 'decode_rows', unknown>;

/** `text` with each key of `edits`, which must occur exactly once, replaced by its value. */
function edited(text: string, edits: Record<string, string>): string {
  for (const [from, to] of Object.entries(edits)) {
    if (text.split(from).length !== 2) throw new Error(`${EXAMPLE} does not have this once: ${from}`);
    text = text.replace(from, () => to);
  }
  return text;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
