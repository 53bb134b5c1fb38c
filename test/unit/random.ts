// Random numbers from a seed. A test that fails prints its seed, and runs again with it.

export class Random {
  private state: number;

  constructor(readonly seed: number) {
    this.state = seed >>> 0;
  }

  /** mulberry32: a number in [0, 1). */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  /** An integer in [0, n). */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** An integer in [low, high]. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  chance(p: number): boolean {
    return this.next() < p;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  shuffled<T>(items: readonly T[]): T[] {
    const out = [...items];
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j]!, out[i]!];
    }
    return out;
  }

  bytes(n: number): Buffer {
    const out = Buffer.alloc(n);
    for (let i = 0; i < n; i++) out[i] = this.below(256);
    return out;
  }

  /** Random lengths of pieces that together have `total` bytes. */
  cuts(total: number, largest: number): number[] {
    const out: number[] = [];
    for (let left = total; left > 0; left -= out.at(-1)!) out.push(Math.min(left, this.between(1, largest)));
    return out;
  }
}

const given = process.env['SEED'];

/**
 * Runs `body` with `runs` random seeds, or only with the environment's SEED. An error names its
 * seed.
 */
export function withSeeds(runs: number, body: (random: Random) => void): void {
  const first = given === undefined ? Math.floor(Math.random() * 0x7fffffff) : Number(given);
  for (let i = 0; i < (given === undefined ? runs : 1); i++) {
    const random = new Random(first + i);
    try {
      body(random);
    } catch (error) {
      if (error instanceof Error) error.message = `SEED=${random.seed}: ${error.message}`;
      throw error;
    }
  }
}
