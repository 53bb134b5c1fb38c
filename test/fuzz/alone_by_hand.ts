// Exchanges written by hand in which decode serves the request alone, because P/D does not fit the
// request or because prefill failed. Decode has forwarded every token, so its rows are valid unless
// its engine reports that some came from a cache.

import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';
import type { Random } from '../unit/random.ts';
import { handshakeOf, modelOf, shapeOf, writerOf } from './by_hand.ts';
import { EVENTS_TYPE, JSON_TYPE, Style, type Messages } from './messages.ts';

/** A path that the filter does not serve. */
const OTHER = '/v1/responses';

const WHYS = [
  'echo',
  'prompts',
  'start',
  'prompt logprobs',
  'no output',
  'fails',
  'stops',
  'other path',
] as const;

export function aloneByHand(random: Random): Messages {
  const style = new Style(random);
  const why = random.pick(WHYS);
  const path =
    {
      echo: random.pick([COMPLETIONS, CHAT]),
      prompts: COMPLETIONS,
      'other path': OTHER,
    }[why as string] ?? random.pick([COMPLETIONS, CHAT, GENERATE]);
  const within = path === GENERATE;
  const connector =
    why === 'stops'
      ? random.pick(['nixl', 'mooncake'] as const)
      : random.pick(['nixl', 'nixl', 'shared_storage', 'mooncake'] as const);
  const handshake = handshakeOf(random, connector);
  const failing = why === 'fails' || why === 'stops';
  const n = failing && connector === 'mooncake' ? 1 : random.pick([1, 1, 1, 2, 3]);
  const stream = why === 'prompt logprobs' || random.chance(0.15);
  const prompts = Array.from({ length: why === 'prompts' ? random.between(2, 3) : 1 }, () =>
    random.between(2, random.pick([12, 12, 200])),
  );
  const shape = shapeOf(random, prompts[0]!, ['alone']);
  const start = why === 'start' || random.chance(0.75) ? 0 : random.between(1, Math.min(...prompts) - 1);
  shape.from = start;
  const writer = writerOf(random, shape);
  const samples = prompts.flatMap((prompt) =>
    Array.from({ length: n }, () => ({ prompt, tokens: why === 'no output' ? 1 : random.between(1, 6) })),
  );
  // In the split form, the prompt rows stand beside `choices` only if there is a single prompt.
  const apart = writer.note === 'split';
  const root = apart && prompts.length === 1 ? writer.root('alone') : {};

  const sampling = style.order({
    max_tokens: why === 'no output' ? 0 : 6,
    ...(n > 1 ? { n } : {}),
    ...(why === 'prompt logprobs' ? { prompt_logprobs: 1 } : {}),
    ...(start > 0 ? { routed_experts_prompt_start: start } : {}),
    // An engine takes this for 0, but P/D does not serve a request that does not say so plainly.
    ...(why === 'start' ? { routed_experts_prompt_start: '0' } : {}),
  });
  const ids = (length: number) => Array.from({ length }, (_, i) => i);
  const request = style.order({
    ...(within
      ? { token_ids: ids(prompts[0]!), sampling_params: sampling }
      : path === CHAT
        ? { messages: [{ role: 'user', content: style.words() }], ...sampling }
        : { prompt: prompts.length > 1 ? prompts.map(ids) : ids(prompts[0]!), ...sampling }),
    ...(why === 'echo' ? { echo: true } : {}),
    ...(stream ? { stream: true } : {}),
    ...(random.chance(0.3) ? { cache_salt: style.words() } : {}),
    ...(random.chance(0.2) ? { kv_transfer_params: { do_remote_prefill: true, remote_host: 'evil' } } : {}),
  });

  const sum = (of: number[]) => of.reduce((a, b) => a + b, 0);
  const cached = random.pick([0, 0, 0, 1, null]);
  const usage = style.order({
    prompt_tokens: sum(prompts),
    completion_tokens: sum(samples.map(({ tokens }) => tokens)),
    prompt_tokens_details: cached === null ? null : { cached_tokens: cached },
  });
  const choice = ({ prompt, tokens }: { prompt: number; tokens: number }, index: number) =>
    style.order({
      index,
      ...(path === CHAT
        ? { message: { role: 'assistant', content: style.words() } }
        : { text: style.words() }),
      ...(random.chance(0.3) ? { token_ids: ids(tokens) } : {}),
      ...writer.choice('alone', tokens, prompt),
      finish_reason: 'length',
    });
  const withUsage = random.chance(0.85);
  const choices = samples.map(choice);
  const document = style.order({
    id: style.words(),
    choices,
    ...root,
    ...(withUsage ? { usage } : {}),
  });
  const events = [
    ...choices.map((each) => ({ id: style.words(), choices: [each] })),
    ...(withUsage ? [{ choices: [], usage }] : []),
  ];
  const params = { kv_transfer_params: why === 'stops' ? random.pick([null, {}]) : { remote_host: 'x' } };
  const prefill = style.order({
    choices: [{ index: 0, text: '', finish_reason: 'stop', ...writer.choice('prefill', 1) }],
    ...writer.root('prefill'),
    usage: { prompt_tokens: prompts[0], completion_tokens: 1 },
    ...params,
  });

  const shared = random.chance(0.25);
  const salted = !shared && connector !== 'shared_storage' && path !== OTHER;
  // Whether decode's own count proves that nothing was cached. For several prompts it proves
  // nothing, except on a path that the filter does not serve.
  const told = withUsage && cached === 0 && !stream && (prompts.length === 1 || path === OTHER);
  const trusted = salted ? n * prompts.length > 1 || !withUsage || (cached ?? 0) === 0 : told;
  return {
    path,
    request: style.write(request),
    prefill: { headers: JSON_TYPE, body: style.write(prefill) },
    decode: stream
      ? { headers: EVENTS_TYPE, body: style.events(events) }
      : { headers: JSON_TYPE, body: style.write(document) },
    config: {
      connector,
      ...handshake,
      ...(shared ? { local_prefix_cache: 'shared' } : {}),
      ...(failing ? { on_prefill_failure: 'decode' } : {}),
    },
    ends: 'local',
    merges:
      trusted &&
      writer.notes.length === 0 &&
      shape.extra === 0 &&
      !(apart && (start > 0 || prompts.length > 1)) &&
      // Where both legs run at the same time, decode has already answered as a decode leg.
      !(failing && handshake['handshake'] === 'concurrent'),
    model: modelOf(shape),
    ...(why === 'fails' ? { fails: true } : {}),
    note: ['by hand', `alone, ${why}`, writer.note, ...writer.notes].join(', '),
  };
}
