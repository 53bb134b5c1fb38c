// What docs/operations.md says that operators see appears on a real Envoy: lines of the access log,
// and names of metrics in Prometheus.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ROOT } from '../../tools/paths.mjs';
import { compileProbe } from '../host/fixtures/compile.ts';
import type { Scenario } from '../scenario.ts';
import {
  answering,
  decodeBody,
  encoded,
  FULL,
  GOOD_DECODE,
  GOOD_PREFILL,
  LAYERS,
  PARAMS,
  PROMPT,
  post,
  prefillBody,
  quoted,
  rowBytes,
  REQUEST,
  TOP_K,
  Watch,
} from '../scenarios/messages.ts';
import { alertQueries, dashboardQueries, missing, usedBy } from '../monitoring.ts';
import type { LogLine } from './config.ts';
import { createEnvoyHost, type HostOptions } from './index.ts';

interface Shown {
  scenario: () => Partial<Scenario>;
  options?: HostOptions;
}

const BROKEN = answering(decodeBody([quoted(encoded({ ...FULL, layers: 3 }))]));
const unmergeable = (on_unmergeable: string): Shown => ({
  scenario: () => ({ config: { on_unmergeable }, decode: BROKEN }),
});
const rejecting = (prefill: Scenario['prefill'], more: object = {}): Shown => ({
  scenario: () => ({ config: { on_prefill_failure: 'reject', prefill: { retries: 0, ...more } }, prefill }),
});
const unavailable = answering('{"error":{}}', { status: 503 });
const refused = answering('{"error":{"message":"prompt is too long"}}', { status: 400 });
const stalled = answering('', { fault: 'stall' });

/** The client leaves when this engine has been asked. */
function leaving(leg: 'prefill' | 'decode'): Partial<Scenario> {
  let reach = () => {};
  const leave = new Promise<void>((resolve) => (reach = resolve));
  return {
    leave,
    [leg]: () => {
      reach();
      return stalled({ method: '', path: '', headers: [], body: Buffer.alloc(0) });
    },
  };
}

/** The second array is bad, and is read when the first one has already been sent to the client. */
function brokenLate(): Partial<Scenario> {
  const body = decodeBody([quoted(encoded(FULL)), quoted(encoded({ ...FULL, layers: 3 }))]);
  const [watch, at] = [new Watch(), body.lastIndexOf('{"index"')];
  const pieces = [Buffer.from(body.slice(0, at)), Buffer.from(body.slice(at))];
  return {
    config: { hold_bytes: 0 },
    client: post(REQUEST.replace('}', ',"n":2}')),
    prefill: answering(GOOD_PREFILL),
    decode: answering(body, { pieces, before: (i) => (i === 1 ? watch.seen(1) : undefined) }),
    onBody: watch.onBody,
  };
}

/** By the text in the first column of the table in docs/operations.md. */
const SHOWN: Record<string, Shown> = {
  'All is well': { scenario: () => ({}) },
  'Prefill fails, `on_prefill_failure: decode`': { scenario: () => ({ prefill: unavailable }) },
  'Prefill fails, `reject`': rejecting(unavailable),
  'Prefill is too slow, `reject`': rejecting(stalled, { timeout_ms: 20 }),
  "Prefill's cluster does not exist, `reject`": rejecting(unavailable, { cluster: 'no_such_cluster' }),
  "Prefill's reply is over `http.async_response_buffer_limit`, `reject`": {
    ...rejecting(answering(prefillBody(quoted(encoded({ rows: 2000 })), 2000))),
    options: { asyncResponseLimit: 4096 },
  },
  'A request names a prefill endpoint that is not allowed': {
    scenario: () => {
      const client = post(REQUEST);
      return {
        config: { prefill: { endpoint_header: 'x-to', allowed_endpoints: ['10.0.0.0/8:8000'] } },
        client: { ...client, headers: [...client.headers, ['x-to', '192.0.2.1:8000']] },
      };
    },
  },
  'A request has a `content-encoding`': {
    scenario: () => {
      const client = post(REQUEST);
      return { client: { ...client, headers: [...client.headers, ['content-encoding', 'gzip']] } };
    },
  },
  'Prefill refuses the request': { scenario: () => ({ prefill: refused }) },
  'Routing can not be merged, `on_unmergeable: reject`': unmergeable('reject'),
  'Routing can not be merged, `null`': unmergeable('null'),
  'Routing can not be merged, `forward`': unmergeable('forward'),
  'Routing can not be merged, and a part of the response was out': { scenario: brokenLate },
  'A row has experts that no router gives': {
    scenario: () => {
      const rows = rowBytes(FULL);
      return {
        decode: answering(decodeBody([quoted(encoded(FULL, rows.fill(0, rows.length - LAYERS * TOP_K)))])),
      };
    },
  },
  'Decode served a request alone, with `shared`, and may have used its cache': {
    scenario: () => ({
      config: { local_prefix_cache: 'shared' },
      client: post(REQUEST.replace('}', ',"echo":true}')),
    }),
  },
  "Prefill's text goes on, and there are no `kv_transfer_params` (`nixl`)": {
    scenario: () => {
      const reply = prefillBody(quoted(encoded(PROMPT))).replace(
        '"text":"x"',
        '"text":"x","finish_reason":"length"',
      );
      return { prefill: answering(reply.replace(PARAMS, 'null')) };
    },
  },
  'Decode has no routing': {
    scenario: () => ({
      prefill: answering(prefillBody('null')),
      decode: answering(decodeBody(['null'])),
    }),
  },
  'Decode refuses the request': { scenario: () => ({ decode: refused }) },
  'Decode is down': { scenario: () => ({ decode: 'down' }) },
  'Decode resets before it answers': { scenario: () => ({ decode: answering('', { fault: 'reset' }) }) },
  'Decode breaks off': {
    scenario: () => ({
      decode: answering(GOOD_DECODE, {
        fault: 'reset_body',
        pieces: [Buffer.from(GOOD_DECODE).subarray(0, 200)],
      }),
    }),
  },
  'The client leaves while prefill runs': { scenario: () => leaving('prefill') },
  'The client leaves while decode runs': { scenario: () => leaving('decode') },
  'The request is over `request_body_buffer_limit`': {
    scenario: () => ({ client: post(REQUEST.replace('three', 'x'.repeat(100_000))) }),
    options: { bufferLimit: 65_536 },
  },
  'Silent for longer than `stream_idle_timeout`': {
    scenario: () => ({ decode: stalled }),
    options: { streamIdleTimeoutMs: 200 },
  },
  'The VM trapped (`failure_policy: FAIL_RELOAD`)': {
    scenario: () => ({ config: { script: 'rh:trap' } }),
    options: { wasmPath: 'probe' },
  },
};

let dir: string;
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'operations-'));
  writeFileSync(join(dir, 'probe.wasm'), await compileProbe());
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const document = () => readFileSync(join(ROOT, 'docs', 'operations.md'), 'utf8');

/** The rows of the table: what happened, then the members of the log line. */
function rows(): string[][] {
  const lines = document().split('\n');
  const start = lines.findIndex((line) => /^\| what happened/.test(line));
  const end = lines.findIndex((line, i) => i > start && !line.startsWith('|'));
  return lines.slice(start + 2, end).map((line) =>
    line
      .split(/(?<!\\)\|/)
      .slice(1, -1)
      .map((cell) => cell.trim().replaceAll('\\|', '|')),
  );
}

describe('the access log', () => {
  test('every line of the table is tried, and the other way round', () => {
    expect(rows().map(([name]) => name)).toEqual(Object.keys(SHOWN));
  });

  const plain = (value: unknown) => (value === null || value === undefined ? '`-`' : `\`${String(value)}\``);
  const cells = ({ code, details, flags, routed_experts }: LogLine) =>
    [code, details, flags, routed_experts].map(plain);

  const groups = new Map<string, string[]>();
  for (const [name, { options = {} }] of Object.entries(SHOWN)) {
    const key = JSON.stringify(options);
    groups.set(key, [...(groups.get(key) ?? []), name]);
  }
  test.each([...groups])('as an Envoy with %s writes it', async (key, names) => {
    const options = JSON.parse(key) as HostOptions;
    if (options.wasmPath) options.wasmPath = join(dir, 'probe.wasm');
    const host = await createEnvoyHost(options);
    const seen: Record<string, string[]> = {};
    try {
      for (const name of names) {
        const result = await host.run({
          name,
          client: post(REQUEST),
          prefill: answering(GOOD_PREFILL),
          decode: answering(GOOD_DECODE),
          ...SHOWN[name]!.scenario(),
        });
        seen[name] = cells(result.line);
      }
    } finally {
      await host.close();
    }
    const written = Object.fromEntries(rows().map(([name, ...line]) => [name, line.slice(0, 4)]));
    expect(seen).toEqual(Object.fromEntries(names.map((name) => [name, written[name]])));
  });
});

describe('what Prometheus is told', () => {
  let scrape: string;
  beforeAll(async () => {
    const host = await createEnvoyHost();
    try {
      for (const name of ['All is well', 'Prefill fails, `reject`'])
        await host.run({
          name,
          client: post(REQUEST),
          prefill: answering(GOOD_PREFILL),
          decode: answering(GOOD_DECODE),
          ...SHOWN[name]!.scenario(),
        });
      scrape = await (await fetch(`${host.adminUrl}/stats/prometheus`)).text();
    } finally {
      await host.close();
    }
  });

  test('has every metric and label of the dashboard', () => {
    expect(dashboardQueries().length).toBeGreaterThan(20);
    expect(missing(dashboardQueries(), scrape)).toEqual([]);
  });

  test('has every metric and label of the alerts', () => {
    expect(alertQueries().length).toBeGreaterThan(8);
    expect(missing(alertQueries(), scrape)).toEqual([]);
  });

  test('a metric that Envoy does not have is found missing', () => {
    const query = (expr: string) => missing([{ name: 'x', expr }], scrape);
    expect(query('sum by (job) (rate(routed_experts_merge[5m])) > 0')).toEqual(['x: routed_experts_merge']);
    expect(query('{__name__=~"routed_experts_unmerge_.+"}')).toHaveLength(1);
    expect(query('envoy_cluster_membership_healthy{envoy_cluster="x"}')).toHaveLength(1);
  });

  test('every metric of the filter is on the dashboard, but for those of outcomes and reasons by themselves', () => {
    const names = [...new Set(scrape.match(/^routed_experts_\w+/gm))];
    const used = dashboardQueries().flatMap(({ expr }) => usedBy(expr).metrics);
    const unseen = names.filter(
      (name) => !used.some((metric) => (typeof metric === 'string' ? metric === name : metric.test(name))),
    );
    expect(unseen).toEqual(['routed_experts_prefill_ms_sum']);
  });
});

test('every alert and every line of the log has a word on what to do', () => {
  for (const { name } of alertQueries()) expect(document()).toContain(`\`${name}\``);
  for (const row of rows()) expect(row[5]!.length, row[0]).toBeGreaterThan(5);
});
