// The place where the two legs of a request meet: each leg brings the tokens of a prompt and waits
// for the other leg.

import type { Patience } from './options.ts';

/** The place of one leg in a meeting. */
export class Place {
  #taken = false;
  #arrive!: (tokens: readonly number[]) => void;
  /** Resolves to the leg's tokens when the leg arrives. */
  here = new Promise<readonly number[]>((resolve) => (this.#arrive = resolve));

  /** Returns false if a leg has arrived here, or left, before. */
  arrive(tokens: readonly number[]): boolean {
    if (this.#taken) return false;
    this.#taken = true;
    this.#arrive(tokens);
    return true;
  }

  /**
   * Nobody can arrive here any more. Those who already wait are not told and wait until their
   * patience ends.
   */
  leave(): void {
    this.#taken = true;
    this.here = never();
  }
}

export class Meeting {
  readonly prefill = new Place();
  readonly decode = new Place();
  /**
   * Called by prefill when it has computed the prompt, with the number of prompt tokens that came
   * from its cache.
   */
  sent!: (cached: number) => void;
  readonly transfer = new Promise<number>((resolve) => (this.sent = resolve));
}

/**
 * A promise that never settles, for a leg that will not come. Each call returns a new promise,
 * because a promise that lives on keeps everything that waits for it in memory.
 */
export function never(): Promise<never> {
  return new Promise(() => undefined);
}

/** Resolves to the value of `event`, or to null if patience ends first. */
export async function within<T>(event: Promise<T>, patience: Patience): Promise<T | null> {
  if (typeof patience === 'function') return Promise.race([event, patience().then(() => null)]);
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<null>((resolve) => {
    // The timer must not keep the process alive for a leg that never comes.
    timer = setTimeout(resolve, patience, null).unref();
  });
  try {
    return await Promise.race([event, over]);
  } finally {
    clearTimeout(timer);
  }
}
