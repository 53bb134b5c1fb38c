/**
 * Runs one scenario on one stream: feeds what the client and the engines send, in the order in which it can arrive.
 * Bytes that are on their way arrive before a new answer does; engines asked at the same time run at the same time.
 */

import { setImmediate } from 'node:timers/promises';
import {
  engineOf,
  ENGINES,
  prefillName,
  requestsOf,
  type Engine,
  type EngineReply,
  type EngineRequest,
  type Header,
  type Protocol,
  type Result,
  type Scenario,
} from '../scenario.ts';
import { calloutRequest, triesAgain, type CalloutReply, type PendingCallout } from './callouts.ts';
import type { HttpStream } from './stream.ts';
import { received, resetBodyReason, resetReason } from './upstream.ts';

/** Where the engines stand, for requests that name an endpoint. */
const FIRST_PORT = 20000;
export const portOf = (engine: string): number => FIRST_PORT + ENGINES.indexOf(engine);

/** What an exchange needs of the emulator. */
interface Callouts {
  readonly pendingCallouts: readonly PendingCallout[];
  completeCallout(call: PendingCallout, reply: CalloutReply, protocol: Protocol): void;
  /** Time passes: each plugin's timer runs once. */
  runTimers(account: HttpStream): void;
}

type Step = () => void;

/** Real time that an engine of a scenario has to settle its promise; past it the engine counts as stalled. */
const ENGINE_PATIENCE_MS = 10_000;
/** Turns of the event loop without an answer: then time has passed. */
const QUIET_TURNS = 20;
const STALLED: EngineReply = { status: 0, headers: [], chunks: [], fault: 'stall' };

export class Exchange {
  readonly #callouts: Callouts;
  readonly #stream: HttpStream;
  readonly #scenario: Scenario;
  readonly #merge: boolean;
  readonly #upstream: Protocol;
  readonly #requests: Pick<Result, 'prefillRequests' | 'bootstrapRequests' | 'decodeRequests'> = {
    prefillRequests: [],
    bootstrapRequests: [],
    decodeRequests: [],
  };
  /** Callouts that were sent to an engine; some will never be answered. */
  readonly #sent = new Set<PendingCallout>();
  /** Engines at work, and what their answers do, in the order in which they were given. */
  readonly #working = new Set<Promise<void>>();
  readonly #answers: Step[] = [];
  /** What happens when nobody has anything to say any more: calls time out first, then the stream. */
  readonly #timeouts: Step[] = [];
  #silent = false;
  /** What is left to arrive from the decode engine. */
  #response: Step[] = [];
  #decodeAsked = false;
  readonly #leave: Promise<unknown>;
  #left = false;
  /** Bytes of the body that the client was told of; -1: not even the head. */
  #told = -1;

  /** `merge`: the end of a body comes with its last bytes. */
  constructor(callouts: Callouts, stream: HttpStream, scenario: Scenario, merge: boolean) {
    this.#callouts = callouts;
    this.#stream = stream;
    this.#scenario = scenario;
    this.#merge = merge;
    this.#upstream = scenario.upstream ?? 'http1';
    this.#leave = scenario.leave ?? new Promise(() => undefined);
    void this.#leave.then(() => (this.#left = true));
  }

  async run(): Promise<Result> {
    const stream = this.#stream;
    const request = this.#requestSteps();
    while (!stream.ended) {
      if (request.length > 0 && !stream.requestPaused) {
        request.shift()?.();
      } else if (this.#response.length > 0 && !stream.responsePaused) {
        this.#response.shift()?.();
      } else {
        this.#askForCallouts();
        if (stream.upstream?.complete && !this.#decodeAsked) this.#askDecode();
        // When nothing can happen any more, but for timers, the client waits in vain, and leaves.
        if (!(await this.#nextAnswer())) {
          this.#callouts.runTimers(stream);
          if (!stream.ended) break;
        }
      }
      if (await this.#clientLeaves()) break;
    }
    // Envoy reads on for a moment when the exchange has ended; nobody is told.
    while (stream.ended && !this.#left && this.#response.length > 0) this.#response.shift()?.();
    stream.clientDisconnect();
    // Answers that come when the client has left still reach the filter.
    do this.#askForCallouts();
    while (await this.#nextAnswer());
    return this.#outcome();
  }

  /** Waits for an answer and lets it arrive; false when none will come. */
  async #nextAnswer(): Promise<boolean> {
    if (this.#answers.length === 0 && this.#timeouts.length > 0) await this.#quiet();
    else if (this.#answers.length === 0 && this.#working.size > 0) {
      await Promise.race(this.#left ? this.#working : [...this.#working, this.#leave]);
      if (this.#answers.length === 0) return true;
    }
    const arrive = this.#answers.shift() ?? this.#timeouts.shift();
    if (arrive) arrive();
    else if (this.#silent && !this.#stream.ended) this.#stream.idleTimeout();
    else return false;
    return true;
  }

  /** Lets engines that can still answer do so. */
  async #quiet(): Promise<void> {
    for (let turn = 0; turn < QUIET_TURNS && this.#answers.length === 0; turn++) await setImmediate();
  }

  /** Tells the client what has come, and gives it the chance to hang up. */
  async #clientLeaves(): Promise<boolean> {
    const { leave, onBody } = this.#scenario;
    if (!leave && !onBody) return false;
    const { client } = this.#stream;
    const bytes = client.chunks.reduce((sum, { length }) => sum + length, 0);
    if (onBody && client.status !== 0 && bytes !== this.#told) onBody((this.#told = bytes));
    await setImmediate();
    return this.#left;
  }

  /** The rest of the response arrives when `gate` opens. */
  #suspend(gate: Promise<unknown> | undefined): void {
    if (!gate) return;
    const rest = this.#response;
    this.#response = [];
    this.#work(gate.then(() => () => void (this.#response = rest)));
  }

  #work(answer: Promise<Step>): void {
    const working = answer
      .then((step) => void this.#answers.push(step))
      .finally(() => this.#working.delete(working));
    this.#working.add(working);
  }

  #askForCallouts(): void {
    for (const call of this.#callouts.pendingCallouts) {
      if (call.account !== this.#stream || this.#sent.has(call)) continue;
      this.#sent.add(call);
      this.#work(this.#answer(call));
    }
  }

  async #answer(call: PendingCallout): Promise<Step> {
    const name = nameOf(call);
    const engine = (name !== null && engineOf(this.#scenario, name)) || 'down';
    let reply: CalloutReply = 'refused';
    do {
      if (engine === 'down') continue;
      const seen = this.#requests[requestsOf(name!)];
      reply = await ask(engine, calloutRequest(call, this.#upstream), seen);
    } while (triesAgain(call, reply));
    const complete = () => {
      this.#callouts.completeCallout(call, reply, this.#upstream);
      if (reply !== 'refused' && !reply.fault) reply.read?.(reply.chunks.length + 1);
    };
    if (reply === 'refused' || !reply.fault?.startsWith('stall')) return complete;
    // Without a timeout this call has no end.
    if (call.timeoutMs === 0) return () => undefined;
    // A client that is to leave does so first.
    if (this.#scenario.leave) await this.#leave;
    return () => void this.#timeouts.push(complete);
  }

  #askDecode(): void {
    this.#decodeAsked = true;
    this.#work(this.#decode().then((steps) => () => void (this.#response = steps)));
  }

  /** The router's exchange with the decode engine; the steps in which the answer arrives. */
  async #decode(): Promise<Step[]> {
    const stream = this.#stream;
    const { decode } = this.#scenario;
    const { upstream } = stream;
    if (!upstream) throw new Error('no request has left');
    if (decode === 'down') return [() => stream.upstreamFailed('remote connection failure')];
    const body = Buffer.concat(upstream.chunks);
    const length = Number(upstream.headers.get('content-length') ?? body.length);
    if (this.#upstream === 'http2') {
      // The HTTP/2 codec counts the bytes against content-length.
      if (body.length !== length) return [() => stream.upstreamFailed('protocol error')];
    } else if (body.length < length) {
      return []; // the engine waits for the rest
    }
    const { headers, headOnly, trailers } = upstream;
    const request = {
      ...received(headers, body.subarray(0, length), headOnly, this.#upstream),
      ...(trailers && trailers.size > 0 ? { trailers: trailers.entries() } : {}),
    };
    const hostless = this.#upstream === 'http1' && !upstream.headers.has(':authority');
    const reply = hostless ? STALLED : await ask(decode, request, this.#requests.decodeRequests);
    if (hostless || body.length > length) {
      // No host, or what follows the announced length is no request: 400, and the connection ends.
      return this.#responseSteps({ status: 400, headers: [['connection', 'close']], chunks: [] });
    }
    if (reply.fault === 'reset') return [() => stream.upstreamFailed(resetReason(this.#upstream))];
    if (reply.fault === 'stall') return [() => this.#silence()];
    return this.#responseSteps(reply);
  }

  /** The engine says nothing more. */
  #silence(): void {
    if (this.#scenario.leave) this.#suspend(this.#leave);
    else this.#silent = true;
  }

  #requestSteps(): Step[] {
    const { client, downstream = 'http1' } = this.#scenario;
    const stream = this.#stream;
    const { method, path, headers, chunks, trailers } = client;
    const http1 = downstream === 'http1';
    const empty = chunks.every(({ length }) => length === 0) && !trailers;
    // http1/codec_impl.cc onHeadersComplete: without a body the head carries the end.
    const headOnly =
      chunks.length === 0 ? !trailers : empty && http1 && valueOf(headers, 'content-length') === '0';
    const steps: Step[] = [() => stream.requestHeaders({ method, path, headers }, headOnly)];
    if (headOnly) return steps;
    // An HTTP/2 client ends the stream with its last bytes.
    const merge = this.#merge || !http1;
    steps.push(
      ...bodySteps(chunks, trailers !== undefined, merge, (bytes, end) => stream.requestBody(bytes, end)),
    );
    if (trailers) steps.push(() => stream.requestTrailers(trailers));
    return steps;
  }

  #responseSteps(reply: EngineReply): Step[] {
    const stream = this.#stream;
    const http1 = this.#upstream === 'http1';
    const { status, trailers, fault, chunks } = reply;
    const length = valueOf(reply.headers, 'content-length');
    const headers: Header[] = [...reply.headers];
    if (http1 && length === undefined && valueOf(headers, 'connection') !== 'close') {
      // http1/codec_impl.cc onHeadersComplete: a 204 must not be chunked.
      if (status === 204) return [() => stream.upstreamFailed('protocol error')];
      headers.push(['transfer-encoding', 'chunked']);
    }
    // cannotHaveBody; an HTTP/2 engine ends the stream with the head.
    const headOnly =
      this.#scenario.client.method === 'HEAD' ||
      status === 204 ||
      status === 304 ||
      (!fault && !trailers && chunks.length === 0 && (length === '0' || !http1));
    const steps: Step[] = [() => stream.responseHeaders(status, headers, headOnly)];
    if (headOnly) return steps;
    const open = fault !== undefined || trailers !== undefined;
    steps.push(...bodySteps(chunks, open, this.#merge, (bytes, end) => stream.responseBody(bytes, end)));
    const { before, read } = reply;
    const pieces = chunks.flatMap(({ length }, i) => (length > 0 ? [i] : []));
    const arriving = pieces.flatMap((piece, i): Step[] => [
      ...(before ? [() => this.#suspend(before(piece))] : []),
      steps[i + 1]!,
      ...(read ? [() => read(piece + 1)] : []),
    ]);
    steps.splice(1, pieces.length, ...arriving);
    if (fault === 'stall_body') steps.push(() => this.#silence());
    else if (fault) steps.push(() => stream.upstreamFailed(resetBodyReason(this.#upstream)));
    else if (trailers) steps.push(() => stream.responseTrailers(trailers));
    if (read && !fault) steps.push(() => read(chunks.length + 1));
    return steps;
  }

  /** What the client makes of what it got: a body that does not fit its content-length is not complete. */
  #outcome(): Result {
    const { client, counters, accessLog } = this.#stream;
    const body = Buffer.concat(client.chunks);
    const bodiless = this.#scenario.client.method === 'HEAD' || [204, 304].includes(client.status);
    const length = valueOf(client.headers, 'content-length');
    const announced = bodiless ? 0 : Number(length ?? body.length);
    // An HTTP/1 client with a length looks no further than that.
    const http1 = (this.#scenario.downstream ?? 'http1') === 'http1';
    const ended = client.complete || (http1 && client.status !== 0 && length !== undefined);
    return {
      status: client.status,
      headers: client.headers,
      body: body.subarray(0, announced),
      trailers: client.trailers,
      complete: ended && body.length === announced,
      ...this.#requests,
      counters: { ...counters },
      logged: accessLog?.filterState.get('wasm.routed_experts')?.toString() ?? null,
    };
  }
}

function valueOf(headers: Header[], wanted: string): string | undefined {
  return headers.find(([name]) => name.toLowerCase() === wanted)?.[1];
}

/** Who answers a callout; null: nobody listens there. */
function nameOf({ cluster, headers }: PendingCallout): string | null {
  const byHeader = cluster.startsWith('original_dst')
    ? 'x-envoy-original-dst-host'
    : cluster.startsWith('dynamic_forward_proxy')
      ? ':authority'
      : null;
  if (byHeader !== null) {
    const port = /^(?:127\.0\.0\.1|localhost):(\d+)$/.exec(headers.get(byHeader) ?? '')?.[1];
    return (port !== undefined && ENGINES[Number(port) - FIRST_PORT]) || null;
  }
  if (cluster === 'down') return null;
  if (cluster.startsWith('bootstrap')) return 'bootstrap';
  return cluster.startsWith('decode') ? 'decode' : prefillName(0);
}

async function ask(engine: Engine, request: EngineRequest, seen: EngineRequest[]): Promise<EngineReply> {
  seen.push(request);
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<EngineReply>((resolve) => {
    timer = setTimeout(() => resolve(STALLED), ENGINE_PATIENCE_MS);
  });
  try {
    return await Promise.race([engine(request), patience]);
  } finally {
    clearTimeout(timer);
  }
}

/** Each piece is a callback; the end is one of its own, or comes with the last piece. `open`: something else ends it. */
function bodySteps(
  chunks: Buffer[],
  open: boolean,
  merge: boolean,
  deliver: (bytes: Uint8Array, end: boolean) => void,
): Step[] {
  const pieces = chunks.filter(({ length }) => length > 0);
  const steps = pieces.map((bytes, i) => () => deliver(bytes, merge && !open && i === pieces.length - 1));
  if (!open && (!merge || pieces.length === 0)) steps.push(() => deliver(Buffer.alloc(0), true));
  return steps;
}
