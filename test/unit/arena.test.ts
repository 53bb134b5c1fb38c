// The arena, from which the memory for bodies comes: blocks do not overlap, keep their contents,
// and are used again.

import { describe, expect, test } from 'vitest';
import { withSeeds } from './random.ts';
import { view, wasm } from './wasm.ts';

const take = (len: number) => wasm['arenaAlloc']!(len) >>> 0;
const give = (ptr: number) => wasm['arenaFree']!(ptr);

describe('the arena', () => {
  test('gives blocks that are aligned, apart from each other, and keep their bytes', () => {
    withSeeds(20, (random) => {
      const live: { ptr: number; len: number; mark: number }[] = [];
      const check = ({ ptr, len, mark }: (typeof live)[number]) => {
        const bytes = view(ptr, len);
        for (const at of [0, 1, len >> 1, len - 2, len - 1]) {
          if (at >= 0 && at < len && bytes[at] !== mark) expect.fail(`byte ${at} of ${len} at ${ptr}`);
        }
      };
      for (let i = 0; i < 300; i++) {
        if (live.length > 0 && random.chance(0.48)) {
          const [gone] = live.splice(random.below(live.length), 1);
          check(gone!);
          give(gone!.ptr);
          continue;
        }
        const len = random.pick([
          0,
          1,
          100,
          16383,
          16384,
          16385,
          65536 - 16,
          65536,
          70000,
          random.below(400_000),
        ]);
        const ptr = take(len);
        expect(ptr % 16).toBe(0);
        for (const other of live) {
          expect(ptr + len <= other.ptr || other.ptr + other.len <= ptr).toBe(true);
        }
        const mark = random.below(256);
        view(ptr, len).fill(mark);
        live.push({ ptr, len, mark });
      }
      for (const block of live) {
        check(block);
        give(block.ptr);
      }
    });
  });

  test('joins what is free and takes no more of the VM than it must', () => {
    const sizes = [5 << 20, 1 << 20, 3 << 20, 2 << 20];
    const round = () => {
      give(take(11 << 20));
      const parts = sizes.map(take);
      for (const n of [2, 0, 3, 1]) give(parts[n]!);
    };
    round();
    const before = wasm['vmBytes']!();
    for (let i = 0; i < 50; i++) round();
    expect(wasm['vmBytes']!()).toBe(before);
    // Twice the memory that there is: the arena grows by what is missing, and does not round up to
    // a power of two.
    const large = take(24 << 20);
    expect(wasm['vmBytes']!() - before).toBeLessThanOrEqual(24 << 20);
    give(large);
  });
});
