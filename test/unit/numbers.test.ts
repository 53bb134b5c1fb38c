// The scanner reads lists of integers in a way of its own: it must accept and count them as
// JSON.parse does.

import { describe, expect, test } from 'vitest';
import { withSeeds, type Random } from './random.ts';
import { Event, lend, wasm } from './wasm.ts';

function accepts(text: string): boolean {
  const bytes = Buffer.from(text);
  return wasm['accepts']!(lend(bytes), bytes.length) !== 0;
}

function parses(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function list(random: Random): string {
  const separator = random.pick([',', ', ', ',  ', ' ,', ',\n']);
  const most = random.pick([0, 9, 99, 151935, 1e15]);
  return Array.from({ length: random.below(60) }, () => String(random.below(most + 1))).join(separator);
}

describe('lists of integers', () => {
  test('are accepted as by JSON.parse, whole, mutated and cut', () => {
    withSeeds(400, (random) => {
      const text = `{"token_ids":[${list(random)}],"b":[[${list(random)}],${random.below(10)}]}`;
      expect(accepts(text), text).toBe(parses(text));
      for (let i = 0; i < 20; i++) {
        const at = random.below(text.length);
        const mutated =
          text.slice(0, at) + random.pick([...'0019,, ]["-.eE+x\n']) + text.slice(at + random.below(2));
        expect(accepts(mutated), mutated).toBe(parses(mutated));
      }
    });
  });

  test('with a wrong byte anywhere in a long run are refused', () => {
    const good = Array.from({ length: 40 }, (_, i) => String(i * 37)).join(',');
    expect(accepts(`[${good}]`)).toBe(true);
    for (let at = 0; at <= good.length; at++) {
      for (const byte of [',', '0', ' ', '-', 'a', '"', ']', '\u0001', '\u00e9']) {
        const text = `[${good.slice(0, at)}${byte}${good.slice(at)}]`;
        expect(accepts(text), text).toBe(parses(text));
      }
    }
  });
});

describe('elements of a list', () => {
  test('are counted, however long it is and wherever it is cut', () => {
    wasm['clearPaths']!();
    const path = Buffer.from('token_ids');
    wasm['addPath']!(lend(path), path.length, 0);
    withSeeds(200, (random) => {
      const ids = Array.from({ length: random.below(80) }, () => random.below(151936));
      const bytes = Buffer.from(`{"token_ids":[${ids.join(random.pick([',', ', ', ' , ']))}],"n":[1,2]}`);
      wasm['scannerStart']!();
      let count = -1;
      for (let at = 0; at < bytes.length;) {
        const piece = bytes.subarray(at, at + random.between(1, 60));
        at += piece.length;
        wasm['scannerFeed']!(lend(piece), piece.length);
        for (let event = wasm['scannerNext']!(); event !== Event.More; event = wasm['scannerNext']!()) {
          expect(event).not.toBe(Event.Failed);
          if (event === Event.ValueEnd) count = wasm['scannerCount']!();
        }
      }
      expect(count, bytes.toString()).toBe(ids.length);
    });
  });
});
