// One exchange of the mix: the request, the faults that it meets, and a journal of what happened to
// it.

import type { Failure } from '../engine/engine.ts';
import type { Header } from '../scenario.ts';
import { CHAT, GENERATE } from '../scenarios/messages.ts';
import { Random } from '../unit/random.ts';
import { DEPLOYMENTS, NATIVE, type Deployment } from './deployments.ts';

export type Leg = 'prefill' | 'decode';
/**
 * How the client connects: through a pool of connections that are kept, or over a connection of its
 * own.
 */
export type Client = 'pool' | 'http1' | 'http2';

/**
 * How the client hangs up: by closing the connection, by resetting it, or by ending its own side
 * only.
 */
export type HangUp = 'close' | 'reset' | 'half-close';

/** When the client hangs up. */
export type Leaving =
  | { at: 'once' | 'half of the request' | 'prefill asked' | 'decode asked' }
  | { at: 'time'; ms: number }
  | { at: 'bytes'; bytes: number };

export interface Rates {
  /** The share of the legs that abort, from 0 to 1. */
  aborts: number;
  /** The share of the clients that leave, from 0 to 1. */
  leavers: number;
}

export interface Reply {
  status: number;
  headers: Header[];
  trailers: Header[];
  body: Buffer;
  complete: boolean;
}

/**
 * The distance between the random seeds of two runs, so that no exchange of one run repeats one of
 * another.
 */
const EXCHANGES_OF_A_SEED = 1_000_003;
const SIZES = [1, 5, 60, 60, 300, 300, 2000];
const LONG = SIZES.filter((size) => size > 30);
/** Fewer bytes than any reply has. */
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
  /** The time at which the client had its answer or gave up. */
  ended: number | undefined;
  /** Whether an engine has aborted. */
  faulty = false;
  /** What decode sent last, if an engine has aborted; it may be damaged. */
  damaged: Buffer | undefined;
  /** The last thing that each engine did with its leg. */
  readonly legs: Partial<Record<Leg, string>> = {};
  /** Whether the exchange was already reported as stalled. */
  told = false;
  readonly journal: string[] = [];
  readonly #aborts: Record<Leg, (Failure | undefined)[]>;
  #leave!: () => void;
  readonly leave = new Promise<void>((resolve) => (this.#leave = resolve));

  /** The request and the faults follow from seed and serial alone, not from earlier exchanges. */
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
    // For a short prompt, the tail of a stream cannot be told from a full array.
    const prompt = random.pick(tail ? LONG : SIZES);
    this.body = Buffer.from(JSON.stringify(this.#request(random, prompt)));
    this.client = random.pick<Client>(['pool', 'pool', 'http1', 'http2']);
    const abort = () => (random.chance(rates.aborts) ? abortOf(random) : undefined);
    // The faults of prefill's first two tries, because Envoy retries the filter's call, and of
    // decode's only try.
    this.#aborts = { prefill: [abort(), abort()], decode: [abort()] };
    this.leaving = random.chance(rates.leavers) ? leavingOf(random) : undefined;
    this.hangsUpBy =
      this.client === 'http1' ? random.pick<HangUp>(['close', 'reset', 'half-close']) : 'close';
    this.note(`${this.client} client, ${this.deployment.name}, ${this.path}, prompt of ${prompt}`);
    if (this.leaving) this.note(`leaves by ${this.hangsUpBy}: ${JSON.stringify(this.leaving)}`);
  }

  /** All prompts differ, so that a KV store never has anything of another exchange. */
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

  /** Called when an engine is asked. Returns how it aborts instead of answering, if it does. */
  asked(leg: Leg): Failure | undefined {
    if (this.leaving?.at === `${leg} asked`) this.hangUp();
    const abort = this.#aborts[leg].shift();
    this.goes(leg, `is asked${abort ? `, and aborts: ${JSON.stringify(abort)}` : ''}`);
    if (abort) this.faulty = true;
    return abort;
  }

  /** Records what an engine does with its leg. */
  goes(leg: Leg, how: string): void {
    this.legs[leg] = how;
    this.note(`${leg} ${how}`);
  }

  /** What the client is waiting for, according to the engines. */
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
    // The engine sends some bytes of the body or none.
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
