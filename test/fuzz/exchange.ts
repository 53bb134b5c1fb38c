// One exchange as the reference sees it: what the client asked for, what prefill brought, and which
// engines served the request.

import type { EngineRequest, Header, Result } from '../scenario.ts';
import type { Alone } from './alone.ts';
import type { FuzzCase, Reply } from './case.ts';
import type { Rules } from './examined.ts';
import { read } from './json.ts';
import { isConcurrent, readRequest, type Asked, type ConnectorName } from './legs.ts';
import { NOTHING, prefillFault, readPrefill, type Brought } from './prefill.ts';

export const value = (headers: Header[], wanted: string) => headers.find(([name]) => name === wanted)?.[1];
export const good = ({ status }: Reply) => status >= 200 && status <= 299;
export const encoded = ({ headers }: { headers: Header[] }) =>
  headers.some(
    ([name, text]) => name === 'content-encoding' && text !== '' && text.toLowerCase() !== 'identity',
  );
export const events = ({ headers }: Reply) =>
  /^text\/event-stream/i.test(value(headers, 'content-type') ?? '');

export const jsonOf = ({ body }: EngineRequest): unknown => read(body.toString('latin1'));
export const connectorOf = ({ config }: FuzzCase) => String(config['connector'] ?? 'nixl') as ConnectorName;
export const askedOf = (of: FuzzCase): Asked | null =>
  readRequest(of.path, Buffer.from(of.body, 'latin1'), connectorOf(of));

export const rulesOf = ({ config }: FuzzCase): Rules => ({
  check: (config['check_rows'] ?? 'sampled') as Rules['check'],
  model: (config['model'] ?? null) as Rules['model'],
});
export const lastIsDecodes = ({ config }: FuzzCase): boolean => config['last_prompt_row'] === 'decode';
export const isTail = ({ config }: FuzzCase): boolean => config['decode_rows'] === 'tail';

/** Whether a request that decode serves alone gets a salt. */
export const isSalted = (of: FuzzCase): boolean =>
  of.config['local_prefix_cache'] !== 'shared' && connectorOf(of) !== 'sglang';

/** What the last prefill reply brought; null if that try failed. */
export function broughtOf(of: FuzzCase, tries: number): Brought | null {
  const reply = of.prefill[Math.min(tries, of.prefill.length) - 1];
  if (!reply || reply === 'down' || reply.fault || !good(reply) || encoded(reply)) return null;
  const lists = connectorOf(of) !== 'nixl' && connectorOf(of) !== 'mooncake';
  const asked = askedOf(of);
  const mayLackLast = connectorOf(of) !== 'sglang';
  const reading = {
    rules: rulesOf(of),
    lists,
    start: asked?.prefillStart ?? 0,
    want: Math.max(asked?.start ?? 0, 0),
    tail: isTail(of),
    last: lastIsDecodes(of),
    mayLackLast,
  };
  return readPrefill(Buffer.from(reply.body, 'latin1'), reading);
}

/**
 * Like `broughtOf`; but if both legs run at the same time, decode also answers when prefill has
 * failed.
 */
export const broughtAtLeast = (of: FuzzCase, tries: number): Brought | null =>
  broughtOf(of, tries) ?? (isConcurrent(of.config) ? NOTHING : null);

/**
 * Whether prefill's engine runs another connector than the configuration names: it stopped at its
 * cap and handed out no parameters.
 */
export const lacksHandshake = (of: FuzzCase, brought: Brought | null): boolean =>
  connectorOf(of) === 'nixl' && brought !== null && brought.params === null && brought.capped;

/**
 * Whether decode serves the request alone, because prefill failed or its reply lacks what decode
 * needs.
 */
export function servesAlone(of: FuzzCase, brought: Brought | null): boolean {
  if (!brought) return true;
  const connector = connectorOf(of);
  if (connector === 'nixl' && brought.params === null) return true;
  // Prefill offers a Mooncake transfer only if it has ended at its cap.
  if (connector === 'mooncake' && !brought.capped) return true;
  return isTail(of) && brought.promptTokens === -1;
}

/**
 * Whether the filter may have no room for prefill's rows. Values of prefill other than its arrays
 * are never parked.
 */
export const tooLarge = ({ config, prefill }: FuzzCase): boolean =>
  config['max_capture_bytes'] !== undefined &&
  (config['max_parked_bytes'] !== undefined ||
    prefill.some(
      (reply) => reply !== 'down' && /prompt_(logprobs|tokens_details|routed_experts)/.test(reply.body),
    ));

/** Which engines serve a request: decode alone or both; `unsure` if the reference cannot tell. */
export function servedBy(of: FuzzCase, { prefillRequests }: Result): 'decode' | 'both' | 'unsure' {
  const asked = askedOf(of);
  if (!asked?.fit || prefillRequests.length === 0) return 'decode';
  if (isConcurrent(of.config)) return 'both';
  const brought = broughtOf(of, prefillRequests.length);
  if (servesAlone(of, brought)) return 'decode';
  // Here only the array tells the prompt's length, and the array is damaged; the filter may refuse
  // an array that the reference accepts.
  const damaged = () =>
    of.notes.some((note) => note.startsWith('prefill')) || prefillFault(rulesOf(of), brought!) !== null;
  const unread = brought?.usage === -1 && damaged();
  return tooLarge(of) || unread ? 'unsure' : 'both';
}

/** How to read a response of a request that decode serves alone. */
export function aloneOf(of: FuzzCase): Alone {
  const asked = askedOf(of);
  const rules = rulesOf(of);
  if (!asked) return { cached: 'zero', counted: false, start: -1, prompts: 1, n: 1, rules };
  const connector = connectorOf(of);
  const common = {
    counted: true,
    start: asked.start,
    prompts: Math.max(asked.batch, 1),
    n: asked.n,
    rules,
  };
  if (isSalted(of) && connector !== 'shared_storage')
    return { ...common, cached: asked.n > 1 ? 'any' : 'no hit' };
  const one = asked.batch <= 1 || connector === 'sglang';
  return { ...common, cached: one ? 'zero' : 'never' };
}
