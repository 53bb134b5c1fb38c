/**
 * Runs one scenario on one stream: delivers what the client and the engines send, in an order in
 * which Envoy could receive it. Bytes that are under way arrive before the next answer does, and
 * engines that are asked at the same time run at the same time.
 */

import { setImmediate } from 'node:timers/promises';
import {
  deliver,
  engineOf,
  ENGINES,
  prefillName,
  noRequests,
  type Engine,
  type EngineReply,
  type Header,
  type Protocol,
  type Result,
  type Scenario,
} from '../scenario.ts';
import { calloutRequest, triesAgain, type CalloutReply, type PendingCallout } from './callouts.ts';
import type { HttpStream } from './stream.ts';
import { received, resetBodyReason, resetReason } from './upstream.ts';

/** The ports of the engines, for requests that name an endpoint. */
const FIRST_PORT = 20000;
export const portOf = (engine: string): number => FIRST_PORT + ENGINES.indexOf(engine);

/** The methods of the emulator that an exchange uses. */
interface Callouts {
  readonly pendingCallouts: readonly PendingCallout[];
  completeCallout(call: PendingCallout, reply: CalloutReply, protocol: Protocol): void;
  /** Runs each plugin's timer once, as when time passes. */
  runTimers(account: HttpStream): void;
}

type Step = () => void;

/**
 * Milliseconds of real time in which an engine of a scenario must answer; after that it counts as
 * stalled.
 */
const ENGINE_PATIENCE_MS = 10_000;
/** Turns of the event loop to wait for an answer before a timeout fires. */
const QUIET_TURNS = 20;
const STALLED: EngineReply = { status: 0, headers: [], chunks: [], fault: 'stall' };

export class Exchange {
  readonly #callouts: Callouts;
  readonly #stream: HttpStream;
  readonly #scenario: Scenario;
  readonly #merge: boolean;
  readonly #upstream: Protocol;
  readonly #requests = noRequests();
  /** Calls for which an engine was asked. Some of them are never answered. */
  readonly #sent = new Set<PendingCallout>();
  /** Engines that have not answered yet. */
  readonly #working = new Set<Promise<void>>();
  readonly #answers: Step[] = [];
  /**
   * Timeouts of calls. One fires when no engine is about to answer; the idle timeout of the stream
   * comes after them.
   */
  readonly #timeouts: Step[] = [];
  #silent = false;
  /** Steps of decode's response that have not arrived yet. */
  #response: Step[] = [];
  #decodeAsked = false;
  readonly #leave: Promise<unknown>;
  #left = false;
  /**
   * Bytes of the body that the client has been told of; -1 when it has not been told of the head.
   */
  #told = -1;

  /** With `merge`, the end of a body comes with its last bytes. */
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
        // Only timers can still change something. If they do not end the stream, the client gives
        // up and leaves.
        if (!(await this.#nextAnswer())) {
          this.#callouts.runTimers(stream);
          if (!stream.ended) break;
        }
      }
      if (await this.#clientLeaves()) break;
    }
    // Envoy still reads bytes that arrive after the end of the exchange, but the filter is not
    // told.
    while (stream.ended && !this.#left && this.#response.length > 0) this.#response.shift()?.();
    stream.clientDisconnect();
    // An audit asks when the exchange is over and the timer of the plugin is due.
    if (this.#scenario.audit) this.#callouts.runTimers(stream);
    // Calls that are answered after the client has left still reach the filter.
    do this.#askForCallouts();
    while (await this.#nextAnswer());
    return this.#outcome();
  }

  /** Waits for one answer or timeout and delivers it; false when none will come. */
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

  /** Waits a few turns of the event loop for engines that are about to answer. */
  async #quiet(): Promise<void> {
    for (let turn = 0; turn < QUIET_TURNS && this.#answers.length === 0; turn++) await setImmediate();
  }

  /** Tells the client what has arrived, and says whether it hangs up. */
  async #clientLeaves(): Promise<boolean> {
    const { leave, onBody } = this.#scenario;
    if (!leave && !onBody) return false;
    const { client } = this.#stream;
    const bytes = client.chunks.reduce((sum, { length }) => sum + length, 0);
    if (onBody && client.status !== 0 && bytes !== this.#told) onBody((this.#told = bytes));
    await setImmediate();
    return this.#left;
  }

  /** Holds back the rest of the response until `gate` resolves. */
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
      const request = calloutRequest(call, this.#upstream);
      reply = await patient(deliver(this.#scenario, name!, request, this.#requests)!);
    } while (triesAgain(call, reply));
    const complete = () => {
      this.#callouts.completeCallout(call, reply, this.#upstream);
      if (reply !== 'refused' && !reply.fault) reply.read?.(reply.chunks.length + 1);
    };
    if (reply === 'refused' || !reply.fault?.startsWith('stall')) return complete;
    // A call without a timeout never ends.
    if (call.timeoutMs === 0) return () => undefined;
    // If the client is going to leave, it leaves before the timeout.
    if (this.#scenario.leave) await this.#leave;
    return () => void this.#timeouts.push(complete);
  }

  #askDecode(): void {
    this.#decodeAsked = true;
    this.#work(this.#decode().then((steps) => () => void (this.#response = steps)));
  }

  /**
   * Sends decode's leg to its engine, as Envoy's router does. Returns the steps in which the
   * response arrives.
   */
  async #decode(): Promise<Step[]> {
    const stream = this.#stream;
    const { decode } = this.#scenario;
    const { upstream } = stream;
    if (!upstream) throw new Error('no request has left');
    if (decode === 'down') return [() => stream.upstreamFailed('remote connection failure')];
    const body = Buffer.concat(upstream.chunks);
    const length = Number(upstream.headers.get('content-length') ?? body.length);
    if (this.#upstream === 'http2') {
      // The HTTP/2 codec compares the bytes of the body with content-length.
      if (body.length !== length) return [() => stream.upstreamFailed('protocol error')];
    } else if (body.length < length) {
      // The engine waits for the rest of the body.
      return [];
    }
    const { headers, headOnly, trailers } = upstream;
    const request = {
      ...received(headers, body.subarray(0, length), headOnly, this.#upstream),
      ...(trailers && trailers.size > 0 ? { trailers: trailers.entries() } : {}),
    };
    const hostless = this.#upstream === 'http1' && !upstream.headers.has(':authority');
    const reply = hostless
      ? STALLED
      : await patient(deliver(this.#scenario, 'decode', request, this.#requests)!);
    if (hostless || body.length > length) {
      // Node's server answers 400 and closes the connection when there is no host, or when the
      // bytes behind the announced length are no request.
      return this.#responseSteps({ status: 400, headers: [['connection', 'close']], chunks: [] });
    }
    if (reply.fault === 'reset') return [() => stream.upstreamFailed(resetReason(this.#upstream))];
    if (reply.fault === 'stall') return [() => this.#silence()];
    return this.#responseSteps(reply);
  }

  /** The engine sends nothing more. */
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
    // Follows `onHeadersComplete` in http1/codec_impl.cc: when there is no body, the head carries
    // the end of the stream.
    const headOnly =
      chunks.length === 0 ? !trailers : empty && http1 && valueOf(headers, 'content-length') === '0';
    const steps: Step[] = [() => stream.requestHeaders({ method, path, headers }, headOnly)];
    if (headOnly) return steps;
    // An HTTP/2 client ends the stream with the last bytes of the body.
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
      // Follows `onHeadersComplete` in http1/codec_impl.cc: a response with status 204 must not be
      // chunked.
      if (status === 204) return [() => stream.upstreamFailed('protocol error')];
      headers.push(['transfer-encoding', 'chunked']);
    }
    // `cannotHaveBody` in http1/codec_impl.cc. An HTTP/2 engine that has no body ends the stream
    // with the head.
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

  /**
   * The result as the client sees it: a body that differs from its content-length is not complete.
   */
  #outcome(): Result {
    const { client, counters, accessLog } = this.#stream;
    const body = Buffer.concat(client.chunks);
    const bodiless = this.#scenario.client.method === 'HEAD' || [204, 304].includes(client.status);
    const length = valueOf(client.headers, 'content-length');
    const announced = bodiless ? 0 : Number(length ?? body.length);
    // An HTTP/1 client that knows the length of the body does not read further.
    const http1 = (this.#scenario.downstream ?? 'http1') === 'http1';
    const ended = client.complete || (http1 && client.status !== 0 && length !== undefined);
    return {
      status: client.status,
      headers: client.headers,
      body: body.subarray(0, announced),
      trailers: client.trailers,
      complete: ended && body.length === announced,
      ...this.#requests,
      auditLog: [],
      counters: { ...counters },
      logged: accessLog?.filterState.get('wasm.routed_experts')?.toString() ?? null,
      loggedDecode: accessLog?.filterState.get('wasm.routed_experts_decode')?.toString() ?? null,
    };
  }
}

function valueOf(headers: Header[], wanted: string): string | undefined {
  return headers.find(([name]) => name.toLowerCase() === wanted)?.[1];
}

/** The name of the engine that a call goes to; null when nothing listens there. */
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
  if (cluster.startsWith('audit')) return 'audit';
  return cluster.startsWith('decode') ? 'decode' : prefillName(0);
}

async function patient(answer: ReturnType<Engine>): Promise<EngineReply> {
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<EngineReply>((resolve) => {
    timer = setTimeout(() => resolve(STALLED), ENGINE_PATIENCE_MS);
  });
  try {
    return await Promise.race([answer, patience]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * The callbacks that deliver a body: one for each piece. The end comes in a callback of its own or,
 * with `merge`, with the last piece. With `open`, something other than the body ends the stream.
 */
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
