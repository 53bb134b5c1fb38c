// Runs cases on the emulator, several at a time in one VM, and checks what they leave behind.

import { createEmulator, type Emulator } from '../host/index.ts';
import type { Engine, Result, Scenario } from '../scenario.ts';
import { auditWrong } from './audits.ts';
import { cutAt, type FuzzCase, type Reply } from './case.ts';
import { judge } from './judge.ts';

export interface Find {
  /** The case that is wrong, followed by those that ran beside it. */
  cases: FuzzCase[];
  what: string;
}

const latin1 = (text: string) => Buffer.from(text, 'latin1');

/**
 * `audited`: audits are asked for, if the case has any. All cases that run side by side have one
 * timer, so these are cases that run alone.
 */
export function scenarioOf(of: FuzzCase, audited: boolean): Scenario {
  let reach = () => {};
  const { leave, decode } = of;
  const audit = audited ? of.audit : undefined;
  const left = leave === undefined ? undefined : new Promise<void>((resolve) => (reach = resolve));
  const engine = (replies: (Reply | 'down')[], leg: string): Engine | 'down' => {
    let asked = 0;
    return () => {
      if (leave === leg) reach();
      const reply = replies[Math.min(asked++, replies.length - 1)]!;
      if (reply === 'down') return { status: 503, headers: [], chunks: [], fault: 'reset' };
      const { status, headers, body, pieces, trailers, fault } = reply;
      // The engine stalls, so the client has nothing more to wait for and leaves.
      if (fault?.startsWith('stall')) reach();
      const chunks = cutAt(latin1(body), pieces);
      return { status, headers, chunks, ...(trailers ? { trailers } : {}), ...(fault ? { fault } : {}) };
    };
  };
  return {
    name: String(of.seed),
    config: audit ? { ...of.config, audit: { fraction: 1 } } : of.config,
    client: {
      method: 'POST',
      path: of.path,
      headers: of.headers,
      chunks: of.body === '' ? [] : cutAt(latin1(of.body), of.pieces),
      ...(of.trailers ? { trailers: of.trailers } : {}),
    },
    prefill: engine(of.prefill, 'prefill'),
    decode: decode === 'down' ? 'down' : engine([decode], 'decode'),
    ...(of.bootstrap ? { bootstrap: engine([of.bootstrap], 'bootstrap') } : {}),
    ...(audit ? { audit: engine([audit.reply], 'audit') } : {}),
    downstream: of.downstream,
    upstream: of.upstream,
    ...(left ? { leave: left } : {}),
    ...(typeof leave === 'number' ? { onBody: (bytes: number) => void (bytes >= leave && reach()) } : {}),
  };
}

export class Runner {
  #hosts: Emulator[] = [];

  private constructor(
    private readonly start: () => Promise<Emulator[]>,
    private readonly counts: Record<string, number>,
  ) {}

  /** Adds the number of cases by outcome to `counts`. */
  static async create(wasmPath: string, counts: Record<string, number> = {}): Promise<Runner> {
    // On one host the end of a body comes with its last bytes, on the other host alone.
    const start = () =>
      Promise.all(
        [false, true].map((mergeEndOfStream) =>
          createEmulator({ wasmPath, mergeEndOfStream, bufferLimit: 1 << 24 }),
        ),
      );
    const runner = new Runner(start, counts);
    runner.#hosts = await start();
    return runner;
  }

  /** Runs cases side by side and returns the first one that is wrong. */
  async run(cases: FuzzCase[]): Promise<Find | null> {
    const host = this.#hosts[cases[0]!.seed & 1]!;
    const find = (what: string): Find => ({ cases, what });
    // The bytes that lie in memory after a body must not matter, so they are filled with this
    // value.
    const poison = cases[0]!.seed & 2 ? 0x41 : 0x22;
    let results: Result[];
    try {
      for (const vm of host.vms) vm.poison = poison;
      results = await Promise.all(cases.map((each) => host.run(scenarioOf(each, cases.length === 1))));
    } catch (error) {
      this.#hosts = await this.start();
      return find((error as Error).stack ?? String(error));
    }
    if (host.failed !== null) {
      const { failed, logs } = host;
      this.#hosts = await this.start();
      return find(
        `trap: ${failed} ${logs
          .slice(-3)
          .map(({ message }) => message)
          .join('\n')}`,
      );
    }
    host.logs.length = 0;
    host.accessLog.length = 0;
    for (const [i, each] of cases.entries()) {
      const wrong = judge(each, results[i]!) ?? auditWrong(each, results[i]!, cases.length === 1);
      if (wrong !== null)
        return {
          cases: [each, ...cases.filter((other) => other !== each)],
          what: `${wrong} [${results[i]!.logged}]`,
        };
      const logged = results[i]!.logged!.replace(/; (rows|choices)=\d+/g, '');
      this.counts[logged] = (this.counts[logged] ?? 0) + 1;
    }
    const left = {
      held: host.gauge('routed_experts.held_bytes'),
      parked: host.sharedBytes,
      contexts: host.openContexts,
    };
    return Object.values(left).some((bytes) => bytes !== 0)
      ? find(`left behind: ${JSON.stringify(left)}`)
      : null;
  }
}
