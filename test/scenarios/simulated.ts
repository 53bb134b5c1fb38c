// The simulated engines behind the filter, compared with their non-disaggregated oracle: every
// endpoint, form, number of choices and length of the prompt, over both protocols.

import { expect } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import type { MoeModel } from '../engine/router.ts';
import type { EngineReply, Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import { CHAT, COMPLETIONS, GENERATE, expectOutcome, jsonOf, post } from './messages.ts';
import { usedDeployment } from './used.ts';

type Form = 'full' | 'tail' | 'tail refused';

interface Spec {
  path: string;
  n: number;
  form: Form;
  tokens: number;
  prompt: number;
  downstream: Protocol;
  upstream: Protocol;
  model: Partial<MoeModel>;
  engine?: Partial<EngineOptions>;
  config?: Record<string, unknown>;
  /** Options of prefill, for engines that are not alike. */
  prefillEngine?: Partial<EngineOptions>;
}

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const TINY: Partial<MoeModel> = { layers: 2, topK: 2, experts: 8 };
const SMALL: Partial<MoeModel> = { layers: 5, topK: 3, experts: 300, dtype: '<u2' };
const LARGE: Partial<MoeModel> = { layers: 48, topK: 8, experts: 128 };
const HOLD = 1 << 20;

const NAMES: Record<string, string> = {
  [COMPLETIONS]: 'completions',
  [CHAT]: 'chat',
  [GENERATE]: 'generate',
};

/**
 * The client's request. Its prompt has `prompt` tokens, apart from the few that a chat's template
 * adds.
 */
function requestOf({ path, n, tokens, prompt }: Spec): string {
  const sampled = n > 1 ? { n, temperature: 0.8 } : {};
  const ids = Array.from({ length: prompt }, (_, i) => 3 + ((i * 31 + (i >> 8)) % 500));
  if (path === GENERATE)
    return JSON.stringify({ token_ids: ids, sampling_params: { max_tokens: tokens, ...sampled } });
  const content = 'routed experts '.repeat(Math.ceil(prompt / 15)).slice(0, prompt);
  if (path === CHAT)
    return JSON.stringify({ messages: [{ role: 'user', content }], max_tokens: tokens, ...sampled });
  return JSON.stringify({ prompt: ids, max_tokens: tokens, ...sampled });
}

/** A size of pieces that cuts a body of any size at odd places, but not into too many pieces. */
const pieceBytes = (prompt: number) => (prompt === 1 ? 11 : prompt < 10_000 ? 1009 : 65_521);

function caseOf(spec: Spec, name: string): Case {
  const { path, n, form, prompt, downstream, upstream } = spec;
  const request = requestOf(spec);
  const tail = form !== 'full';
  const shared: Partial<EngineOptions> = {
    version: form === 'tail' ? '0.32' : '0.30',
    connector: form === 'tail' ? 'shared_storage' : 'nixl',
    model: spec.model,
    ...(form === 'tail refused' ? { ignorePromptStart: true } : {}),
    ...spec.engine,
  };
  let sent: EngineReply | undefined;
  // Computed once: long prompts take seconds.
  let oracles: string[] | undefined;
  const oracleArrays = (): string[] => {
    const oracle = createEngine({ ...shared, role: 'oracle' });
    const { chunks } = oracle({
      method: 'POST',
      path,
      headers: [['content-type', 'application/json']],
      body: Buffer.from(request),
    });
    return arraysOf(Buffer.concat(chunks));
  };
  // If the response may be larger than what is held, its first pieces decide what the head can
  // tell.
  const large =
    spec.config?.['hold_bytes'] === 0 ||
    prompt * n * (spec.model.layers ?? 1) * (spec.model.topK ?? 1) > HOLD / 4;

  const scenario = (): Scenario => {
    const { prefill, decode } = usedDeployment(path, request, shared, {
      prefill: spec.prefillEngine ?? {},
      decode: { chunkBytes: pieceBytes(prompt) },
    }).engines;
    return {
      name,
      config: {
        connector: shared.connector,
        decode_rows: tail ? 'tail' : 'full',
        ...spec.config,
      },
      client: post(request, { path }),
      prefill,
      decode: async (received) => (sent = await decode(received)),
      downstream,
      upstream,
    };
  };

  const check = (result: Result): void => {
    expect(result).toMatchObject({ status: 200, complete: true });
    const right = (oracles ??= oracleArrays());
    expect(right).toHaveLength(n);
    let at = 0;
    const decoded = Buffer.concat(sent!.chunks).toString('latin1');
    const expected = decoded.replace(ARRAY, () => `"routed_experts":"${right[at++]}"`);
    // The bodies are compared as a boolean, because a printed difference of megabytes helps nobody.
    if (spec.engine?.npy || spec.prefillEngine) expectSameRows(result.body, right);
    else expect(result.body.toString('latin1') === expected, excerpt(result.body, expected)).toBe(true);

    const file = decodeNpy(Buffer.from(right[0]!, 'base64'));
    const [rows, layers, topK] = file.shape as [number, number, number];
    const lp = rows - (spec.tokens - 1);
    const item = Number(file.descr.slice(2));
    expectOutcome(result, `merged; rows=${lp}; choices=${n}`, {
      'routed_experts.spliced_bytes': lp * layers * topK * item * n,
    });
    const said = header(result.headers, 'x-routed-experts')!;
    if (large) expect(result.logged!.startsWith(said)).toBe(true);
    else expect(said).toBe(result.logged);
    const length = header(result.headers, 'content-length');
    // With several tails, the length is known only when the last one has come.
    if (length !== undefined) expect(Number(length)).toBe(result.body.length);
    else expect(large && form !== 'full' && n > 1).toBe(true);

    expect(result.prefillRequests).toHaveLength(1);
    expect(result.decodeRequests).toHaveLength(1);
    const asked =
      path === GENERATE
        ? (jsonOf(result.decodeRequests[0]!)['sampling_params'] as Record<string, unknown>)
        : jsonOf(result.decodeRequests[0]!);
    expect(asked['routed_experts_prompt_start']).toBe(tail ? lp : undefined);
  };
  return { name, scenario, check, cutDecidesHead: large };
}

const ARRAY = /"routed_experts":"[^"]*"/g;

function arraysOf(body: Buffer): string[] {
  return (body.toString('latin1').match(ARRAY) ?? []).map((member) =>
    member.slice('"routed_experts":"'.length, -1),
  );
}

/** If the headers are padded differently, the files differ although the arrays are equal. */
function expectSameRows(body: Buffer, right: string[]): void {
  const merged = arraysOf(body).map((text) => decodeNpy(Buffer.from(text, 'base64')));
  expect(merged).toHaveLength(right.length);
  right.forEach((text, i) => {
    const { data, shape } = decodeNpy(Buffer.from(text, 'base64'));
    expect(merged[i]!.shape).toEqual(shape);
    expect(merged[i]!.data.equals(data)).toBe(true);
  });
}

function excerpt(body: Buffer, expected: string): string {
  const actual = body.toString('latin1');
  let at = 0;
  while (at < expected.length && actual[at] === expected[at]) at++;
  return `byte ${at}: ${actual.slice(at - 40, at + 80)} instead of ${expected.slice(at - 40, at + 80)}`;
}

const ENDPOINTS = [COMPLETIONS, CHAT, GENERATE];

function matrix(): Case[] {
  const cases: Case[] = [];
  for (const path of ENDPOINTS)
    for (const form of ['full', 'tail', 'tail refused'] as Form[])
      for (const n of [1, 2, 5])
        for (const tokens of [1, 17])
          for (const prompt of [1, 3000, 40_000])
            for (const downstream of PROTOCOLS)
              for (const upstream of PROTOCOLS) {
                // Long prompts run over both protocols, but not over every pair of them.
                if (prompt > 1 && downstream !== upstream) continue;
                const model = prompt === 40_000 ? TINY : SMALL;
                const name = `${NAMES[path]}, ${form}, n=${n}, ${tokens} generated, prompt of ${prompt}, ${downstream} to ${upstream}`;
                cases.push(caseOf({ path, n, form, tokens, prompt, downstream, upstream, model }, name));
              }
  return cases;
}

/** The engines compute for seconds, so not every combination is here, but every pair of two. */
function large(): Case[] {
  const combinations: [Form, Protocol, 'held' | 'parked'][] = [
    ['full', 'http1', 'held'],
    ['full', 'http2', 'parked'],
    ['tail', 'http1', 'parked'],
    ['tail', 'http2', 'held'],
  ];
  return combinations.map(([form, protocol, kept]) =>
    caseOf(
      {
        path: COMPLETIONS,
        n: 1,
        form,
        tokens: 17,
        prompt: 40_000,
        downstream: protocol,
        upstream: protocol,
        model: LARGE,
        ...(kept === 'parked' ? { config: { max_capture_bytes: 0 } } : {}),
      },
      `48 layers of top 8, ${form}, prompt of 40000, rows ${kept}, ${protocol}`,
    ),
  );
}

/** The headers of the two legs let their rows start at different phases of base64. */
function phases(): Case[] {
  const cases: Case[] = [];
  for (const form of ['full', 'tail'] as Form[])
    for (const prefill of [0, 1, 2])
      for (const decode of [0, 1, 2])
        for (const hold_bytes of [0, HOLD])
          for (const prompt of [1, 2, 3, 400])
            cases.push(
              caseOf(
                {
                  ...{
                    path: COMPLETIONS,
                    n: 2,
                    form,
                    tokens: 4,
                    prompt,
                    downstream: 'http1',
                    upstream: 'http1',
                  },
                  model: { layers: 3, topK: 1, experts: 7 },
                  engine: { npy: { padding: decode } },
                  prefillEngine: { npy: { padding: prefill } },
                  config: { hold_bytes },
                },
                `${form}, headers padded by ${prefill} and ${decode}, prompt of ${prompt}, hold_bytes ${hold_bytes}`,
              ),
            );
  return cases.map((of) => ({ ...of, cutDecidesHead: true }));
}

export const simulated: Suite = {
  name: 'simulated engines and their oracle',
  cases: [...matrix(), ...large()],
};
export const paddings: Suite = { name: 'headers of any size', cases: phases() };
