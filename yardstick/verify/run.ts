// Asks a deployment and its reference the same requests, and judges the answers.

import { randomUUID } from 'node:crypto';
import pLimit from 'p-limit';
import { conversations, type Conversation, type Kind } from '../cases.ts';
import { Client, type Answer } from '../client.ts';
import type { Reply } from '../reply.ts';
import { PATHS, bodyOf, type Asked, type EndpointName } from '../requests.ts';
import { CannotRun, detect, type Deployment } from './deployment.ts';
import { judge, readAnswer, type Judged } from './judge.ts';
import type { Options } from './options.ts';

/** Whether prefill's KV was used for an answer. */
export type Disaggregated = 'yes' | 'no' | 'unknown';

export interface Result extends Judged {
  kind: Kind;
  endpoint: EndpointName;
  status: number;
  milliseconds: number;
  outcome: string | null;
  disaggregated: Disaggregated;
}

export interface Run {
  deployment: Deployment;
  results: Result[];
  /**
   * The number of requests that prefill has served, and how many it had to serve for all answers
   * that do not say that decode has served them alone. Null without `--prefill`.
   */
  prefill: { served: number; expected: number } | null;
  seconds: number;
}

export interface Progress {
  start(total: number): void;
  step(wrong: number): void;
  stop(): void;
}

export async function verify(options: Options, progress: Progress): Promise<Run> {
  const client = (base: URL) =>
    new Client(base, {
      headers: options.header,
      timeoutMs: options.timeout * 1000,
      connections: options.concurrency,
    });
  const through = client(options.through);
  const oracle = options.oracle && client(options.oracle);
  const prefill = options.prefill && client(options.prefill);
  const started = performance.now();
  try {
    const deployment = await detect(through, oracle ?? through, options);
    const room = (deployment.context ?? Infinity) - 2 * options.maxTokens;
    const list = conversations(options.requests, deployment.endpoints, deployment.dialect, {
      ...options,
      // A word can have several tokens.
      long: Math.max(Math.min(options.longPrompt, Math.floor(room / 4)), 64),
    });
    if (list.length === 0) throw new CannotRun('The deployment serves none of these kinds of requests.');
    const before = prefill && (await servedBy(prefill));
    const run = new Runner(options, deployment, through, oracle ?? null, progress);
    const results = await run.all(list);
    const after = prefill && (await servedBy(prefill));
    return {
      deployment,
      results,
      prefill:
        before === undefined || after === undefined
          ? null
          : { served: after - before, expected: run.disaggregable },
      seconds: (performance.now() - started) / 1000,
    };
  } finally {
    progress.stop();
    for (const each of [through, oracle, prefill]) each?.close();
  }
}

class Runner {
  /** The number of answers that do not say that decode has served them alone. */
  disaggregable = 0;
  #wrong = 0;

  constructor(
    private readonly options: Options,
    private readonly deployment: Deployment,
    private readonly through: Client,
    private readonly oracle: Client | null,
    private readonly progress: Progress,
  ) {}

  async all(list: Conversation[]): Promise<Result[]> {
    this.progress.start(list.reduce((sum, { length }) => sum + length, 0));
    const limit = pLimit(this.options.concurrency);
    const results: Result[] = [];
    const replies = new Map<Conversation, Reply[]>();
    const run = (conversation: Conversation, from: number, to: number) =>
      limit(async () => {
        const known = replies.get(conversation) ?? [];
        replies.set(conversation, known);
        for (let i = from; i < to; i++) if (!(await this.#one(conversation, i, known, results))) return;
      });
    const first = ({ later, length }: Conversation) => (later ? 1 : length);
    await Promise.all(list.map((conversation) => run(conversation, 0, first(conversation))));
    await Promise.all(
      list.map((conversation) => run(conversation, first(conversation), conversation.length)),
    );
    return results;
  }

  /** Returns false if the conversation cannot go on. */
  async #one(conversation: Conversation, i: number, replies: Reply[], results: Result[]): Promise<boolean> {
    const asked = conversation.ask(i, replies);
    if (!asked) return false;
    const answer = await this.#send(this.through, asked);
    const reference = await this.#reference(asked);
    const judged = judge(asked, answer, readAnswer(reference), this.deployment.shape);
    const { kind, endpoint } = conversation;
    const { status, milliseconds, outcome } = answer;
    const read = readAnswer(answer);
    const reply = 'reply' in read ? read.reply : null;
    const disaggregated = disaggregatedBy(answer, reply, FRESH.has(kind));
    results.push({ ...judged, kind, endpoint, status, milliseconds, outcome, disaggregated });
    if (judged.verdict === 'wrong' || judged.verdict === 'missing') this.#wrong++;
    this.progress.step(this.#wrong);
    if (reply) replies.push(reply);
    return reply !== null;
  }

  #send(client: Client, asked: Asked): Promise<Answer> {
    const { dialect, model } = this.deployment;
    return client.post(PATHS[asked.endpoint], bodyOf(asked, dialect, model)).then((answer) => {
      const served = answer.status === 200 && !answer.outcome?.startsWith('local');
      if (client === this.through && served) this.disaggregable++;
      return answer;
    });
  }

  /**
   * The oracle's answer; or, without an oracle, another answer of the deployment's, which finds
   * nothing in a cache because of its salt.
   */
  #reference(asked: Asked): Promise<Answer> {
    return this.oracle
      ? this.#send(this.oracle, asked)
      : this.#send(this.through, { ...asked, salt: randomUUID() });
  }
}

/** Kinds whose prompts no engine has seen before. */
const FRESH: ReadonlySet<Kind> = new Set(['short', 'long', 'one token', 'n', 'stream']);

function disaggregatedBy({ outcome }: Answer, reply: Reply | null, fresh: boolean): Disaggregated {
  if (/^(merged|unmerged)/.test(outcome ?? '')) return 'yes';
  if (outcome?.startsWith('local')) return 'no';
  if (!reply) return 'unknown';
  // A new prompt is in no cache of decode's own, so its cached tokens have come from elsewhere.
  const { cachedTokens, promptTokens } = reply;
  const pulled = cachedTokens !== null && promptTokens !== null && cachedTokens >= promptTokens - 1;
  return fresh && pulled && promptTokens > 1 ? 'yes' : 'unknown';
}

/** vLLM's and SGLang's counters of requests (vllm/v1/metrics, sglang/srt/metrics). */
const SERVED = /^(?:vllm:request_success_total|sglang:num_requests_total)(?:\{[^}]*\})? ([\d.eE+]+)/gm;

/** The number of requests that an engine has served since it started. */
async function servedBy(client: Client): Promise<number> {
  const { status, body } = await client.get('/metrics');
  const counts = [...body.toString().matchAll(SERVED)].map(([, value]) => Number(value));
  if (status === 200 && counts.length > 0) return counts.reduce((a, b) => a + b);
  throw new CannotRun(`${client.base.href}metrics does not count requests (status ${status}).`);
}
