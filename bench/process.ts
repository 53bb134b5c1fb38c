// Child processes that answer calls. The engines and the load generator run in one each, so that
// none of them waits for another.

import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';

interface Call {
  id: number;
  name: string;
  argument: unknown;
}

interface Answer {
  id: number;
  value?: unknown;
  error?: string;
}

export type Handlers = Record<string, (argument: never) => unknown>;

/** Answers the calls of the parent process, and ends with it. */
export function serveCalls(handlers: Handlers): void {
  process.on('disconnect', () => process.exit());
  // Ctrl-C reaches the whole process group, but the parent decides when to stop.
  process.on('SIGINT', () => undefined);
  process.on('message', async ({ id, name, argument }: Call) => {
    const answer: Answer = { id };
    try {
      answer.value = await handlers[name]!(argument as never);
    } catch (error) {
      answer.error = error instanceof Error ? (error.stack ?? error.message) : String(error);
    }
    process.send!(answer);
  });
}

export class Worker<H extends Handlers> {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, { resolve(value: never): void; reject(error: Error): void }>();
  #next = 0;
  #ended = false;

  /** `path` names a module of this folder that calls `serveCalls`. */
  constructor(path: string) {
    this.#child = fork(fileURLToPath(new URL(path, import.meta.url)), [], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      serialization: 'advanced',
    });
    this.#child.on('message', ({ id, value, error }: Answer) => {
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiting?.resolve(value as never);
      else waiting?.reject(new Error(error));
    });
    this.#child.on('exit', (code, signal) => {
      this.#ended = true;
      for (const { reject } of this.#waiting.values()) reject(new Error(`${path} ended: ${signal ?? code}`));
    });
  }

  call<K extends keyof H & string>(
    name: K,
    argument: Parameters<H[K]>[0],
  ): Promise<Awaited<ReturnType<H[K]>>> {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(new Error(`${name}: the process has ended`));
      const id = this.#next++;
      this.#waiting.set(id, { resolve: resolve as (value: never) => void, reject });
      this.#child.send({ id, name, argument } satisfies Call);
    });
  }

  close(): void {
    if (!this.#ended) this.#child.kill();
  }
}
