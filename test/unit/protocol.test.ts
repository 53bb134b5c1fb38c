// What the filter says of a request before a leg leaves, compared with what vLLM 0.30 said of it.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Api, Unfit, checkLeaks, lend, takeOutput, wasm } from './wasm.ts';

checkLeaks();

type Error = [status: number, type: string, param: string | null, layer: 'protocol' | 'serving'];
type Verdict = [api: keyof typeof APIS, body: string, limit: number, prompt: number, what: 200 | Error];

const APIS = { completions: Api.Completions, chat: Api.Chat, generate: Api.Generate };
const file = new URL('../fixtures/vllm_requests/verdicts.json', import.meta.url);
const VERDICTS = JSON.parse(readFileSync(file, 'utf8')) as Verdict[];

const enum Said {
  Served,
  Refused,
  /** Decode serves the request alone, so that it decides itself. */
  Alone,
}

function say([api, body, limit, prompt]: Verdict): { said: Said; text: string } {
  const name = Buffer.from('nixl');
  wasm['useConnector']!(lend(name), name.length);
  const bytes = Buffer.from(body);
  const ptr = wasm['alloc']!(bytes.length) >>> 0;
  new Uint8Array((wasm as unknown as { memory: WebAssembly.Memory }).memory.buffer, ptr, bytes.length).set(
    bytes,
  );
  const fit = wasm['requestRead']!(APIS[api], ptr, bytes.length) === Unfit.No;
  const said = fit ? (wasm['requestCheck']!(limit, prompt) as Said) : Said.Alone;
  wasm['free']!(ptr);
  return { said, text: takeOutput().toString() };
}

/** The prefill leg has the member as it came, so that prefill refuses it, too. */
const REFUSED_BY_PREFILL = /"temperature":(null|"x")/;
/** How many choices a server gives is its own setting, and may be more. */
const MANY_CHOICES = /"n":("?)(16385|[0-9.e]{16,}|1e1[58]|9{19,})\1[,}]/;

describe('of the requests of which vLLM 0.30 has spoken', () => {
  test('none is refused that vLLM serves', () => {
    const served = VERDICTS.filter(([, , , , what]) => what === 200);
    expect(served.length).toBeGreaterThan(1000);
    expect(served.filter((verdict) => say(verdict).said === Said.Refused)).toEqual([]);
  });

  test('none goes to prefill that decode would refuse', () => {
    const refused = VERDICTS.filter(([, , , , what]) => what !== 200);
    expect(refused.length).toBeGreaterThan(1500);
    const taken = refused.filter((verdict) => say(verdict).said === Said.Served);
    const known = ([, body]: Verdict) => REFUSED_BY_PREFILL.test(body) || MANY_CHOICES.test(body);
    expect(taken.filter((verdict) => !known(verdict))).toEqual([]);
  });

  test('the error names the same member', () => {
    const commas = { completions: 1, chat: 2, generate: 2 };
    const single = VERDICTS.filter(
      ([api, body, , prompt]) => prompt === 3 && body.split(',"').length - 1 <= commas[api],
    );
    const wrong = single.filter((verdict) => {
      const what = verdict[4];
      const { said, text } = say(verdict);
      if (said !== Said.Refused || what === 200 || what[2] === null) return false;
      const param = what[2].split('.').at(-1)!;
      // Pydantic names `sampling_params` where one of its members has a wrong type.
      return param !== text.split(':')[0] && !(param === 'sampling_params' && verdict[0] === 'generate');
    });
    expect(wrong).toEqual([]);
  });

  test('only odd spellings are left to decode', () => {
    const odd =
      /\\|[^\0-\x7f]|[0-9][eE][-+0-9]|[0-9.]{16,}|truncate_prompt_tokens|use_beam_search|_tokens":("[^1-9"]*"|-?Infinity|[^1-9{[nt,}]+)[,}]/;
    expect(VERDICTS.filter((verdict) => say(verdict).said === Said.Alone && !odd.test(verdict[1]))).toEqual(
      [],
    );
  });
});
