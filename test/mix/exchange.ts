// One exchange of the mix: what is asked, which faults it meets, what it may come to, and a journal of what was seen.

import type { Failure } from '../engine/engine.ts';
import type { Header } from '../scenario.ts';
import { CHAT, GENERATE } from '../scenarios/messages.ts';
import { Random } from '../unit/random.ts';
import { DEPLOYMENTS, NATIVE, type Deployment } from './deployments.ts';

export type Leg = 'prefill' | 'decode';
/** How the client connects: by a pool of connections that stay, or by one of its own. */
export type Client = 'pool' | 'http1' | 'http2';

/** How it hangs up: by closing the connection, by a reset, or by ending its side of it. */
export type HangUp = 'close' | 'reset' | 'half-close';

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

/** Between the streams of random numbers of two seeds. */
const EXCHANGES_OF_A_SEED = 1_000_003;
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
  readonly hangsUpBy: HangUp;
  readonly started = performance.now();
  /** Set when the client has its answer, or has given up. */
  ended: number | undefined;
  /** An engine has aborted. */
  faulty = false;
  /** What decode sent last, where it aborted: it may be damaged. */
  damaged: Buffer | undefined;
  /** How far each engine has come with it, by its own word. */
  readonly legs: Partial<Record<Leg, string>> = {};
  /** It was told about as one that stalls. */
  told = false;
  readonly journal: string[] = [];
  readonly #aborts: Record<Leg, (Failure | undefined)[]>;
  #leave!: () => void;
  readonly leave = new Promise<void>((resolve) => (this.#leave = resolve));

  /** What it asks and meets is a matter of seed and serial, whatever came before it. */
  constructor(
    readonly serial: number,
    seed: number,
    rates: Rates,
  ) {
    const random = new Random(seed * EXCHANGES_OF_A_SEED + serial);
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
    this.hangsUpBy =
      this.client === 'http1' ? random.pick<HangUp>(['close', 'reset', 'half-close']) : 'close';
    this.note(`${this.client} client, ${this.deployment.name}, ${this.path}, prompt of ${prompt}`);
    if (this.leaving) this.note(`leaves by ${this.hangsUpBy}: ${JSON.stringify(this.leaving)}`);
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
    this.goes(leg, `is asked${abort ? `, and aborts: ${JSON.stringify(abort)}` : ''}`);
    if (abort) this.faulty = true;
    return abort;
  }

  /** What an engine does with its leg. */
  goes(leg: Leg, how: string): void {
    this.legs[leg] = how;
    this.note(`${leg} ${how}`);
  }

  /** Whom the client waits for, as the engines have seen it. */
  get waitsFor(): string {
    const { prefill = 'was not asked', decode = 'was not asked' } = this.legs;
    return `prefill ${prefill}; decode ${decode}`;
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
