// One exchange of the mix: what is asked, which faults it meets, what it may come to, and a journal of what was seen.

import type { Failure } from '../engine/engine.ts';
import type { Header } from '../scenario.ts';
import { CHAT, GENERATE } from '../scenarios/messages.ts';
import type { Random } from '../unit/random.ts';
import { DEPLOYMENTS, NATIVE, type Deployment } from './deployments.ts';

export type Leg = 'prefill' | 'decode';
/** How the client connects: by a pool of connections that stay, or by one of its own. */
export type Client = 'pool' | 'http1' | 'http2';

/** When the client hangs up. */
export type Leaving =
  | { at: 'once' | 'half of the request' | 'prefill asked' | 'decode asked' }
  | { at: 'time'; ms: number }
  | { at: 'bytes'; bytes: number };

export interface Rates {
  /** Of legs, that abort. */
  aborts: number;
  /** Of clients, that leave. */
  leavers: number;
}

export interface Reply {
  status: number;
  headers: Header[];
  trailers: Header[];
  body: Buffer;
  complete: boolean;
}

const SIZES = [1, 5, 60, 60, 300, 300, 2000];
const LONG = SIZES.filter((size) => size > 30);
/** Less than any reply has. */
const FEW_BYTES = 90;

export class Exchange {
  readonly id: string;
  readonly deployment: Deployment;
  readonly path: string;
  readonly body: Buffer;
  readonly client: Client;
  readonly leaving: Leaving | undefined;
  readonly started = performance.now();
  /** Set when the client has its answer, or has given up. */
  ended: number | undefined;
  /** An engine has aborted. */
  faulty = false;
  /** It was told about as one that stalls. */
  told = false;
  readonly journal: string[] = [];
  readonly #aborts: Record<Leg, (Failure | undefined)[]>;
  #leave!: () => void;
  readonly leave = new Promise<void>((resolve) => (this.#leave = resolve));

  constructor(
    readonly serial: number,
    random: Random,
    rates: Rates,
  ) {
    this.id = String(serial);
    this.deployment = random.pick(DEPLOYMENTS);
    this.path = random.pick(this.deployment.paths);
    const tail = this.deployment.config['decode_rows'] === 'tail';
    // Of a short prompt a stream's tail can't be told from a full array.
    const prompt = random.pick(tail ? LONG : SIZES);
    this.body = Buffer.from(JSON.stringify(this.#request(random, prompt)));
    this.client = random.pick<Client>(['pool', 'pool', 'http1', 'http2']);
    const abort = () => (random.chance(rates.aborts) ? abortOf(random) : undefined);
    // Of prefill the first two tries, the filter's own and Envoy's.
    this.#aborts = { prefill: [abort(), abort()], decode: [abort()] };
    this.leaving = random.chance(rates.leavers) ? leavingOf(random) : undefined;
    this.note(`${this.client} client, ${this.deployment.name}, ${this.path}, prompt of ${prompt}`);
    if (this.leaving) this.note(`leaves: ${JSON.stringify(this.leaving)}`);
  }

  /** No two prompts are alike: a store must have nothing of another exchange. */
  #request(random: Random, prompt: number): object {
    const ids = Array.from({ length: prompt }, () => 3 + random.below(500));
    ids[0] = 1000 + this.serial;
    const max_tokens = random.pick([1, 4, 30]);
    const n = random.between(1, this.deployment.choices);
    const many = n > 1 ? { n, temperature: 0.8 } : {};
    if (this.path === NATIVE) {
      return {
        ...{ input_ids: ids, sampling_params: { max_new_tokens: max_tokens } },
        ...{ return_routed_experts: true, stream: random.chance(0.4) },
      };
    }
    if (this.path === GENERATE) {
      return { token_ids: ids, sampling_params: { max_tokens, ...many }, stream: random.chance(0.4) };
    }
    const asked = { max_tokens, ...many, return_routed_experts: true };
    const content = `${this.serial} ${'routed experts '.repeat(prompt / 15)}`;
    return this.path === CHAT
      ? { messages: [{ role: 'user', content }], ...asked }
      : { prompt: ids, ...asked };
  }

  note(what: string): void {
    this.journal.push(`${(performance.now() - this.started).toFixed(0)} ms: ${what}`);
  }

  /** An engine is asked; what it does instead of answering. */
  asked(leg: Leg): Failure | undefined {
    if (this.leaving?.at === `${leg} asked`) this.hangUp();
    const abort = this.#aborts[leg].shift();
    this.note(`${leg} is asked${abort ? `, and aborts: ${JSON.stringify(abort)}` : ''}`);
    if (abort) this.faulty = true;
    return abort;
  }

  received(bytes: number): void {
    if (this.leaving?.at === 'bytes' && bytes >= this.leaving.bytes) this.hangUp();
  }

  hangUp(): void {
    this.#leave();
  }
}

function abortOf(random: Random): Failure {
  return random.pick<Failure>([
    { fault: 'reset' },
    { fault: 'reset' },
    // Some bytes of the body, or none.
    { fault: 'reset_body', keepBytes: random.below(2) * random.below(FEW_BYTES) },
    { fault: 'reset_body' },
    { status: 500 },
    { status: 503 },
    { body: '{"choices":[' },
  ]);
}

function leavingOf(random: Random): Leaving {
  return random.pick<Leaving>([
    { at: 'once' },
    { at: 'half of the request' },
    { at: 'prefill asked' },
    { at: 'decode asked' },
    { at: 'time', ms: random.below(30) },
    { at: 'time', ms: random.below(200) },
    { at: 'bytes', bytes: 0 },
    { at: 'bytes', bytes: random.below(3000) },
  ]);
}
