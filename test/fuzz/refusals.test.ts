// The fuzzer's reference for refused requests, compared with what vLLM 0.30 said of them.

import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';
import { parse } from './json.ts';
import { refusalOf } from './refusals.ts';

type Case = [api: keyof typeof PATHS, body: string, limit: number, prompt: number, what: 200 | unknown[]];

const PATHS = { completions: COMPLETIONS, chat: CHAT, generate: GENERATE };
const file = new URL('../fixtures/vllm_requests/verdicts.json', import.meta.url);
const CASES = (JSON.parse(readFileSync(file, 'utf8')) as Case[]).flatMap(
  ([api, body, limit, prompt, what]) => {
    const text = Buffer.from(body).toString('latin1');
    const root = parse(text);
    if (root?.kind !== 'object') return [];
    const { verdict, cap, least } = refusalOf(PATHS[api], text, root);
    const long = api !== 'generate' && (cap !== null ? prompt + cap > limit : least > limit - prompt);
    return [{ api, body, prompt, limit, says: long && verdict === 'served' ? 'refused' : verdict, what }];
  },
);
/**
 * Refused for a member that both legs have as it came, or by a setting of the server: how many
 * choices it gives.
 */
const BOTH_LEGS = /"temperature":(null|"x")|"n":("?)(16385|[0-9.e]{16,}|1e1[58]|9{19,})\2[,}]/;
/** Members with which the filter sends nothing to prefill. */
const NO_PD = /truncate_prompt_tokens|use_beam_search|"prompt":\[\]|echo/;

test('nothing is refused that vLLM serves', () => {
  const served = CASES.filter(({ what, body }) => what === 200 && !NO_PD.test(body));
  expect(served.length).toBeGreaterThan(1000);
  expect(served.filter(({ says }) => says === 'refused')).toEqual([]);
});

test('what vLLM refuses is refused, or unsure', () => {
  const refused = CASES.filter(({ what }) => what !== 200);
  expect(refused.length).toBeGreaterThan(1500);
  const missed = refused.filter(
    ({ says, body }) => says === 'served' && !BOTH_LEGS.test(body) && !NO_PD.test(body),
  );
  expect(missed).toEqual([]);
});

test('most verdicts are sure', () => {
  expect(CASES.filter(({ says }) => says === 'unsure').length).toBeLessThan(CASES.length / 4);
});
