// Configurations: which ones are refused and with which message, which ones are accepted, and that
// several configurations in one VM do not affect each other.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Scenario } from '../scenario.ts';
import {
  FULL,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  REQUEST,
  answering,
  decodeBody,
  encoded,
  expectOutcome,
  jsonOf,
  post,
  quoted,
} from './messages.ts';
import { OUTCOMES, type Start, type TestHost } from './run.ts';

export type Config = Record<string, unknown>;

const prefill = (more: Config) => ({ prefill: more });
const integer = (least: number, most: number) => `expected an integer from ${least} to ${most}`;
const MIB = 1 << 20;
const KNOWN =
  'prefill, connector, handshake, decode_rows, last_prompt_row, local_prefix_cache, check_rows, model, max_model_len, headers, paths, on_prefill_failure, on_unmergeable, hold_bytes, max_hold_bytes, ' +
  'max_capture_bytes, max_parked_bytes, max_piece_bytes, audit';
const PATHS = 'expected a path ending in one of /completions, /chat/completions, /inference/v1/generate';

const ENDPOINT =
  'expected host:port, where host is an address, a CIDR block (IPv6 in brackets) or a name, and port may be a range';

const audit = (more: Config) => ({ audit: { cluster: 'oracle', ...more } });

const BY_REQUEST = { endpoint_header: 'x-to', allowed_endpoints: ['10.0.0.1:80'] };

/**
 * Marks a rule that JSON Schema cannot express, so that `envoy/config.schema.json` accepts the
 * configuration.
 */
export const BEYOND_SCHEMA = 'beyond the schema';

/**
 * Configurations that are refused, with the message. The hosts fill in `prefill.cluster`. They are
 * also run through the JSON Schema, which must refuse and accept the same ones.
 */
export const REFUSED: [Config, string, typeof BEYOND_SCHEMA?][] = [
  [{ no_such_key: 1 }, `no_such_key: expected no such key; known are ${KNOWN}`],
  [{ Connector: 'nixl' }, `Connector: expected no such key; known are ${KNOWN}`],
  [
    prefill({ clusters: 'x' }),
    'prefill.clusters: expected no such key; known are cluster, endpoint_header, allowed_endpoints, ' +
      'cluster_type, bootstrap_cluster, bootstrap_host, bootstrap_port, bootstrap_ttl_ms, timeout_ms, retries',
  ],
  [{ prefill: 'x' }, 'prefill: expected an object with the member cluster'],
  [{ prefill: [] }, 'prefill: expected an object with the member cluster'],
  [prefill({ cluster: '' }), 'prefill.cluster: expected the name of a cluster'],
  [prefill({ cluster: 1 }), 'prefill.cluster: expected a string'],
  [prefill({ cluster: null }), 'prefill.cluster: expected a string'],
  [prefill({ timeout_ms: 0 }), `prefill.timeout_ms: ${integer(1, 86_400_000)}`],
  [prefill({ timeout_ms: 86_400_001 }), `prefill.timeout_ms: ${integer(1, 86_400_000)}`],
  [prefill({ timeout_ms: 1.5 }), `prefill.timeout_ms: ${integer(1, 86_400_000)}`],
  [prefill({ timeout_ms: '1' }), `prefill.timeout_ms: ${integer(1, 86_400_000)}`],
  [prefill({ timeout_ms: null }), `prefill.timeout_ms: ${integer(1, 86_400_000)}`],
  [prefill({ timeout_ms: 1e300 }), `prefill.timeout_ms: ${integer(1, 86_400_000)}`],
  [prefill({ retries: -1 }), `prefill.retries: ${integer(0, 10)}`],
  [prefill({ retries: 11 }), `prefill.retries: ${integer(0, 10)}`],
  [prefill({ retries: true }), `prefill.retries: ${integer(0, 10)}`],
  [prefill({ retries: [1] }), `prefill.retries: ${integer(0, 10)}`],
  ...[
    '',
    'a b',
    'a:b',
    ':path',
    'X-To',
    'a\u00e9',
    'host',
    'authorization',
    'x-request-id',
    'x-envoy-to',
  ].map((endpoint_header): [Config, string] => [
    prefill({ endpoint_header, allowed_endpoints: ['10.0.0.1:80'] }),
    'prefill.endpoint_header: expected the name of a header in lower case, without another meaning',
  ]),
  [prefill({ endpoint_header: 1, allowed_endpoints: [] }), 'prefill.endpoint_header: expected a string'],
  ...[undefined, [], 'x', {}, null].map((allowed_endpoints): [Config, string] => [
    prefill({ endpoint_header: 'x-to', allowed_endpoints }),
    'prefill.allowed_endpoints: expected an array of endpoints, not empty',
  ]),
  ...[
    '10.0.0.1',
    1,
    '10.0.0.0/8',
    '10.0.0.256:80',
    '10.0.0.0/33:80',
    '10.0.0.1:65536',
    '[fd00::]',
    'fd00::1:80',
    'x',
    'a..b:80',
    null,
  ].map((entry): [Config, string] => [
    prefill({ endpoint_header: 'x-to', allowed_endpoints: ['10.0.0.1:80', entry] }),
    `prefill.allowed_endpoints[1]: ${ENDPOINT}`,
  ]),
  ...['10.0.0.1/8:80', '[fd00::1/8]:80'].map((entry): [Config, string, typeof BEYOND_SCHEMA] => [
    prefill({ endpoint_header: 'x-to', allowed_endpoints: [entry] }),
    'prefill.allowed_endpoints[0]: expected no bits behind the prefix of a CIDR block',
    BEYOND_SCHEMA,
  ]),
  [
    prefill({ endpoint_header: 'x-to', allowed_endpoints: ['prefill:80'] }),
    'prefill.allowed_endpoints[0]: expected an address; a name needs cluster_type dynamic_forward_proxy',
  ],
  [
    prefill({ endpoint_header: 'x-to', allowed_endpoints: ['10.0.0.1:80'], cluster_type: 'static' }),
    'prefill.cluster_type: expected one of original_dst, dynamic_forward_proxy',
  ],
  [
    prefill({ allowed_endpoints: ['10.0.0.1:80'] }),
    'prefill.allowed_endpoints: expected endpoint_header beside it',
  ],
  [prefill({ cluster_type: 'original_dst' }), 'prefill.cluster_type: expected endpoint_header beside it'],
  ...['sglang', 'mooncake'].map((connector): [Config, string] => [
    { connector },
    `prefill.bootstrap_host: expected a value: connector ${connector} needs it unless there is an endpoint_header`,
  ]),
  ...['', 'a b', '10.0.0.256', '127.1', '::1', '[::1', 'a:80', 'a..b', '-a', '10.0.0.1/8', 'a/b'].map(
    (bootstrap_host): [Config, string, typeof BEYOND_SCHEMA?] => [
      { connector: 'sglang', prefill: { bootstrap_host } },
      'prefill.bootstrap_host: expected an address or a name',
    ],
  ),
  [{ connector: 'sglang', prefill: { bootstrap_host: 1 } }, 'prefill.bootstrap_host: expected a string'],
  [
    { connector: 'sglang', prefill: { ...BY_REQUEST, bootstrap_host: 'prefill' } },
    'prefill.bootstrap_host: expected no endpoint_header beside it',
  ],
  [
    { connector: 'sglang', prefill: { bootstrap_host: 'prefill', bootstrap_cluster: 'bootstrap' } },
    'prefill.bootstrap_cluster: expected none with connector sglang',
  ],
  [
    { connector: 'mooncake', prefill: { ...BY_REQUEST, bootstrap_cluster: '' } },
    'prefill.bootstrap_cluster: expected the name of a cluster',
  ],
  ...[0, 65_536, '8998', 1.5].map((bootstrap_port): [Config, string] => [
    { connector: 'sglang', prefill: { ...BY_REQUEST, bootstrap_port } },
    `prefill.bootstrap_port: ${integer(1, 65_535)}`,
  ]),
  ...['nixl', 'shared_storage'].flatMap((connector): [Config, string][] => [
    [
      { connector, prefill: { bootstrap_host: 'prefill' } },
      `prefill.bootstrap_host: expected none with connector ${connector}`,
    ],
    [
      { connector, prefill: { bootstrap_cluster: 'prefill' } },
      `prefill.bootstrap_cluster: expected none with connector ${connector}`,
    ],
    [
      { connector, prefill: { bootstrap_port: 8998 } },
      `prefill.bootstrap_port: expected none with connector ${connector}`,
    ],
  ]),
  ...(
    [
      ['sglang', undefined, 'with connector sglang'],
      ['mooncake', 'concurrent', 'with handshake concurrent'],
    ] as const
  ).flatMap(([connector, handshake, why]): [Config, string][] => {
    const config = { connector, ...(handshake ? { handshake } : {}), prefill: BY_REQUEST };
    return [
      [
        { ...config, decode_rows: 'tail' },
        `decode_rows: expected full: ${why} decode starts before prefill has answered`,
      ],
      [{ ...config, headers: 'pass' }, `headers: expected hold: ${why} the response waits for prefill`],
    ];
  }),
  ...[-1, 86_400_001, '1', 0.5].map((bootstrap_ttl_ms): [Config, string] => [
    { connector: 'mooncake', prefill: { ...BY_REQUEST, bootstrap_ttl_ms } },
    `prefill.bootstrap_ttl_ms: ${integer(0, 86_400_000)}`,
  ]),
  ...['nixl', 'shared_storage', 'sglang'].map((connector): [Config, string] => [
    { connector, prefill: { bootstrap_ttl_ms: 1, ...(connector === 'sglang' ? BY_REQUEST : {}) } },
    `prefill.bootstrap_ttl_ms: expected none with connector ${connector}`,
  ]),
  ...['nixl', 'shared_storage', 'sglang'].flatMap((connector) =>
    ['sequential', 'concurrent'].map((handshake): [Config, string] => [
      { connector, handshake, ...(connector === 'sglang' ? { prefill: BY_REQUEST } : {}) },
      connector === 'sglang'
        ? 'handshake: expected none: connector sglang sends both legs at once'
        : `handshake: expected none: connector ${connector} sends one leg after the other`,
    ]),
  ),
  [
    { connector: 'mooncake', handshake: 'both', prefill: BY_REQUEST },
    'handshake: expected one of sequential, concurrent',
  ],
  [{ connector: 'mooncake', handshake: true, prefill: BY_REQUEST }, 'handshake: expected a string'],
  [
    { connector: 'sglang', prefill: BY_REQUEST, last_prompt_row: 'decode' },
    'last_prompt_row: expected prefill: with connector sglang decode does not forward the last token of the prompt',
  ],
  [
    { connector: 'sglang', prefill: BY_REQUEST, paths: ['/inference/v1/generate'] },
    'paths[0]: expected a path ending in one of /completions, /chat/completions, /generate',
  ],
  [{ paths: ['/generate'] }, `paths[0]: ${PATHS}`],
  [{ connector: 'Nixl' }, 'connector: expected one of nixl, shared_storage, mooncake, sglang'],
  [{ connector: '' }, 'connector: expected one of nixl, shared_storage, mooncake, sglang'],
  [{ connector: 1 }, 'connector: expected a string'],
  [{ decode_rows: 'half' }, 'decode_rows: expected one of full, tail'],
  [{ decode_rows: true }, 'decode_rows: expected a string'],
  [{ headers: 'stop' }, 'headers: expected one of hold, pass'],
  [{ headers: true }, 'headers: expected a string'],
  [
    { headers: 'pass', on_unmergeable: 'null' },
    'on_unmergeable: expected reject or forward: with headers pass the length has been told',
  ],
  [{ on_prefill_failure: 'retry' }, 'on_prefill_failure: expected one of decode, reject'],
  [{ on_unmergeable: 'drop' }, 'on_unmergeable: expected one of reject, null, forward'],
  [{ on_unmergeable: null }, 'on_unmergeable: expected a string'],
  [{ paths: '/v1/completions' }, 'paths: expected an array of paths'],
  [{ paths: {} }, 'paths: expected an array of paths'],
  [{ paths: ['/v1/completions', 'v1/completions'] }, `paths[1]: ${PATHS}`],
  [{ paths: ['/v1/embeddings'] }, `paths[0]: ${PATHS}`],
  [{ paths: [1] }, `paths[0]: ${PATHS}`],
  [{ hold_bytes: -1 }, `hold_bytes: ${integer(0, 256 * MIB)}`],
  [{ hold_bytes: 256 * MIB + 1 }, `hold_bytes: ${integer(0, 256 * MIB)}`],
  [{ hold_bytes: {} }, `hold_bytes: ${integer(0, 256 * MIB)}`],
  ...[0, -1, 2 ** 31 + 1, 1.5, '4096', null].map((max_model_len): [Config, string] => [
    { max_model_len },
    `max_model_len: ${integer(1, 2 ** 31)}`,
  ]),
  [
    { connector: 'sglang', max_model_len: 4096, prefill: { bootstrap_host: 'x' } },
    'max_model_len: expected none with connector sglang',
  ],
  [{ max_hold_bytes: 256 * MIB + 1 }, `max_hold_bytes: ${integer(0, 256 * MIB)}`],
  [{ max_hold_bytes: 1000 }, 'max_hold_bytes: expected at least hold_bytes', BEYOND_SCHEMA],
  [{ hold_bytes: 2000, max_hold_bytes: 1000 }, 'max_hold_bytes: expected at least hold_bytes', BEYOND_SCHEMA],
  [{ max_capture_bytes: 640 * MIB + 1 }, `max_capture_bytes: ${integer(0, 640 * MIB)}`],
  [{ max_parked_bytes: -1 }, `max_parked_bytes: ${integer(0, 2 ** 40)}`],
  [{ max_parked_bytes: 2 ** 40 + 1 }, `max_parked_bytes: ${integer(0, 2 ** 40)}`],
  [{ audit: 'oracle' }, 'audit: expected an object with the member cluster'],
  [{ audit: null }, 'audit: expected an object with the member cluster'],
  [audit({ cluster: '' }), 'audit.cluster: expected the name of a cluster'],
  [audit({ cluster: 1 }), 'audit.cluster: expected a string'],
  [
    audit({ share: 1 }),
    'audit.share: expected no such key; known are cluster, fraction, timeout_ms, max_calls, max_bytes',
  ],
  ...[-0.1, 1.1, '0.1', null, true].map((fraction): [Config, string] => [
    audit({ fraction }),
    'audit.fraction: expected a number from 0 to 1',
  ]),
  ...[0, 86_400_001, 0.5].map((timeout_ms): [Config, string] => [
    audit({ timeout_ms }),
    `audit.timeout_ms: ${integer(1, 86_400_000)}`,
  ]),
  ...[0, 1025, '1'].map((max_calls): [Config, string] => [
    audit({ max_calls }),
    `audit.max_calls: ${integer(1, 1024)}`,
  ]),
  ...[MIB - 1, 256 * MIB + 1].map((max_bytes): [Config, string] => [
    audit({ max_bytes }),
    `audit.max_bytes: ${integer(MIB, 256 * MIB)}`,
  ]),
  [{ max_piece_bytes: 65_535 }, `max_piece_bytes: ${integer(65_536, 256 * MIB)}`],
  [{ max_piece_bytes: 256 * MIB + 1 }, `max_piece_bytes: ${integer(65_536, 256 * MIB)}`],
];

/** Configurations that are refused because of a key that the hosts otherwise fill in. */
export const REFUSED_UNFILLED: [Config, string][] = [
  [{ audit: {} }, 'audit.cluster: expected the name of a cluster'],
  [
    { connector: 'mooncake', prefill: { bootstrap_host: 'prefill' } },
    'prefill.bootstrap_cluster: expected a value: connector mooncake needs it unless there is an endpoint_header',
  ],
];

/**
 * Configurations that are accepted. They are compared with the JSON Schema only, because the plain
 * exchange with which `TAKEN` is run does not suit their connectors.
 */
export const TAKEN_BOOTSTRAPPED: Config[] = [
  { connector: 'sglang', prefill: { bootstrap_host: 'prefill-0.models' } },
  { connector: 'sglang', prefill: { bootstrap_host: '10.0.0.1', bootstrap_port: 1 }, decode_rows: 'full' },
  { connector: 'sglang', prefill: BY_REQUEST, paths: ['/x/generate', '/v1/completions'] },
  {
    connector: 'mooncake',
    prefill: { bootstrap_host: '[::1]', bootstrap_cluster: 'b', bootstrap_port: 65_535 },
  },
  { connector: 'mooncake', prefill: { ...BY_REQUEST, bootstrap_cluster: 'b' } },
  { connector: 'mooncake', handshake: 'concurrent', prefill: BY_REQUEST, last_prompt_row: 'decode' },
  { connector: 'mooncake', prefill: { ...BY_REQUEST, bootstrap_ttl_ms: 0 } },
  { connector: 'mooncake', prefill: { ...BY_REQUEST, bootstrap_ttl_ms: 86_400_000 } },
  { connector: 'mooncake', handshake: 'sequential', prefill: BY_REQUEST, decode_rows: 'tail' },
  { connector: 'mooncake', prefill: BY_REQUEST, decode_rows: 'tail', headers: 'pass' },
  { connector: 'mooncake', prefill: { ...BY_REQUEST, cluster_type: 'dynamic_forward_proxy' } },
];

export const TAKEN: Config[] = [
  {},
  prefill({ timeout_ms: 1000, retries: 0 }),
  prefill({ timeout_ms: 86_400_000, retries: 10 }),
  { connector: 'nixl', decode_rows: 'full', on_prefill_failure: 'decode', on_unmergeable: 'reject' },
  { on_prefill_failure: 'reject', on_unmergeable: 'null' },
  { on_unmergeable: 'forward' },
  { headers: 'hold', on_unmergeable: 'null' },
  { headers: 'pass', on_unmergeable: 'forward' },
  { connector: 'shared_storage' },
  { hold_bytes: 0, max_hold_bytes: 0 },
  { max_model_len: 4096 },
  { max_model_len: 2 ** 31, connector: 'shared_storage' },
  { hold_bytes: 256 * MIB },
  { max_hold_bytes: 256 * MIB, max_capture_bytes: 640 * MIB, max_parked_bytes: 2 ** 40 },
  { max_capture_bytes: 0 },
  { max_piece_bytes: 65_536 },
  { max_piece_bytes: 256 * MIB },
  { paths: ['/v1/completions', '/x/v1/chat/completions'] },
  audit({ fraction: 0 }),
  audit({ fraction: 0.000_001, timeout_ms: 1, max_calls: 1024, max_bytes: 256 * MIB }),
];

const scenarioOf = (config: Config, more: Partial<Scenario> = {}): Scenario => ({
  name: 'configuration',
  config,
  client: post(REQUEST),
  prefill: answering(GOOD_PREFILL),
  decode: answering(GOOD_DECODE),
  ...more,
});

/** The message with which the filter refused the configuration; fails if the filter accepted it. */
async function refusal(host: TestHost, config: Config): Promise<string> {
  const error = await host.run(scenarioOf(config)).then(
    () => new Error('the configuration was taken'),
    (reason: Error) => reason,
  );
  const said = [...error.message.matchAll(/configuration refused: ([^\n]*)/g)].at(-1);
  if (!said) throw error;
  return said[1]!;
}

export function runConfigurations(start: Start): void {
  describe('configurations', () => {
    let host: TestHost;
    let sent = 0;
    beforeAll(async () => void (host = await start({})));
    afterAll(() => host?.close());

    test.each(REFUSED)('refused: %j', async (config, message) => {
      expect(await refusal(host, config)).toBe(message);
    });

    test.each(TAKEN)('taken: %j', async (config) => {
      const result = await host.run(scenarioOf(config));
      sent++;
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(GOOD_MERGED);
    });

    test('several configurations of one VM do not mix', async () => {
      const broken = decodeBody([quoted(encoded({ ...FULL, layers: 3 }))]);
      const decode = answering(broken);
      const policies = { reject: 502, null: 200, forward: 200 };
      for (let round = 0; round < 3; round++) {
        for (const [on_unmergeable, status] of Object.entries(policies)) {
          const result = await host.run(scenarioOf({ on_unmergeable }, { decode }));
          sent++;
          expect(result.status).toBe(status);
          if (on_unmergeable === 'forward') expect(result.body.toString()).toBe(broken);
          if (on_unmergeable === 'null') expect(result.body.toString()).toContain('"routed_experts":null');
          const outcome = on_unmergeable === 'reject' ? 'rejected' : 'unmerged';
          expectOutcome(result, `${outcome}; reason=layers`);
        }
        const shared = await host.run(scenarioOf({ connector: 'shared_storage', decode_rows: 'tail' }));
        sent++;
        expect('kv_transfer_params' in jsonOf(shared.decodeRequests[0]!)).toBe(false);
        expect(jsonOf(shared.decodeRequests[0]!)['routed_experts_prompt_start']).toBe(5);
        const nixl = await host.run(scenarioOf({}));
        sent++;
        expect(jsonOf(nixl.decodeRequests[0]!)['kv_transfer_params']).toMatchObject({
          remote_request_id: 'r-1',
        });
        expect('routed_experts_prompt_start' in jsonOf(nixl.decodeRequests[0]!)).toBe(false);
      }
    });

    test('every exchange had exactly one outcome, and no VM has failed', async () => {
      const outcomes = await Promise.all(OUTCOMES.map((outcome) => host.metric(`routed_experts.${outcome}`)));
      expect(outcomes.reduce((a, b) => a + b)).toBe(sent);
      expect(await host.metric('routed_experts.held_bytes')).toBe(0);
      expect(await host.failures()).toEqual([]);
    });
  });
}
