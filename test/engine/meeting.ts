// Where the two legs of a request meet: each brings the tokens of a prompt, and waits for the other one.

import type { Patience } from './options.ts';

/** One leg's place. */
export class Place {
  #taken = false;
  #arrive!: (tokens: readonly number[]) => void;
  /** Its tokens, once it is there. */
  here = new Promise<readonly number[]>((resolve) => (this.#arrive = resolve));

  /** False: somebody has been here before. */
  arrive(tokens: readonly number[]): boolean {
    if (this.#taken) return false;
    this.#taken = true;
    this.#arrive(tokens);
    return true;
  }

  /** Nobody will be here any more, and nobody is told. */
  leave(): void {
    this.#taken = true;
    this.here = never();
  }
}

export class Meeting {
  readonly prefill = new Place();
  readonly decode = new Place();
  /** Told by prefill when it has computed the prompt: how many of its tokens came from a cache there. */
  sent!: (cached: number) => void;
  readonly transfer = new Promise<number>((resolve) => (this.sent = resolve));
}

/** Of somebody who will not come. A new one each time: a promise keeps everybody who waits for it. */
export function never(): Promise<never> {
  return new Promise(() => undefined);
}

/** What `event` gives, or null when patience has ended before. */
export async function within<T>(event: Promise<T>, patience: Patience): Promise<T | null> {
  if (typeof patience === 'function') return Promise.race([event, patience().then(() => null)]);
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<null>((resolve) => {
    // Nobody's exit waits for a leg that nobody joins.
    timer = setTimeout(resolve, patience, null).unref();
  });
  try {
    return await Promise.race([event, over]);
  } finally {
    clearTimeout(timer);
  }
}
