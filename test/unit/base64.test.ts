// Base64 that is read and written character by character, compared with Buffer.

import { describe, expect, test } from 'vitest';
import { withSeeds } from './random.ts';
import { lend, peek, view, wasm } from './wasm.ts';

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const value = (c: string) => ALPHABET.indexOf(c);

const inAlphabet = (bytes: Buffer, from = 0, to = bytes.length) => {
  const ptr = lend(bytes);
  return wasm['inAlphabet']!(ptr + from, ptr + to) !== 0;
};

/** The bits that the characters of a text stand for, as 0 and 1. */
const bits = (text: string) => [...text].map((c) => value(c).toString(2).padStart(6, '0')).join('');

describe('inAlphabet', () => {
  test('knows every byte in every lane of every path', () => {
    // 150 characters are two rounds of 64, one of 16, and a rest of 6.
    const length = 150;
    for (let byte = 0; byte < 256; byte++) {
      const expected = value(String.fromCharCode(byte)) >= 0;
      const ptr = lend(Buffer.alloc(length, 'A'));
      for (let at = 0; at < length; at++) {
        view(ptr, length)[at] = byte;
        if ((wasm['inAlphabet']!(ptr, ptr + length) !== 0) !== expected) {
          expect.fail(`byte ${byte} at ${at}`);
        }
        view(ptr, length)[at] = 0x41;
      }
    }
  });

  test('looks at all of a range and at nothing else, at every length and alignment', () => {
    for (let from = 0; from < 16; from++) {
      for (let len = 0; len <= 200; len++) {
        const bytes = Buffer.alloc(from + len + 70, '=');
        bytes.fill('z', from, from + len);
        expect(inAlphabet(bytes, from, from + len)).toBe(true);
        if (len === 0) continue;
        bytes[from + len - 1] = 0x2d;
        expect(inAlphabet(bytes, from, from + len)).toBe(false);
        bytes.fill('/', from, from + len);
        bytes[from] = 0x3d;
        expect(inAlphabet(bytes, from, from + len)).toBe(false);
      }
    }
  });

  test('knows the alphabet whole', () => {
    for (let turn = 0; turn < 64; turn++) {
      const turned = ALPHABET.slice(turn) + ALPHABET.slice(0, turn);
      expect(inAlphabet(Buffer.from(turned.repeat(3)))).toBe(true);
    }
    for (const c of '-_=,. \n"\\\0') expect(inAlphabet(Buffer.from(ALPHABET + c))).toBe(false);
  });
});

test('valueOf and charOf are inverse, and nothing else has a value', () => {
  for (let byte = 0; byte < 256; byte++) {
    expect((wasm as Record<string, (n: number) => number>)['valueOf']!(byte)).toBe(
      value(String.fromCharCode(byte)),
    );
  }
  for (let v = 0; v < 64; v++) expect(wasm['charOf']!(v)).toBe(ALPHABET.charCodeAt(v));
});

test('mix takes its first bits from the one, the others from the other', () => {
  for (let a = 0; a < 64; a++) {
    for (let b = 0; b < 64; b++) {
      for (const top of [0, 2, 4, 6]) {
        const char = wasm['mix']!(ALPHABET.charCodeAt(a), ALPHABET.charCodeAt(b), top);
        const expected = bits(ALPHABET[a]!).slice(0, top) + bits(ALPHABET[b]!).slice(top);
        expect(bits(String.fromCharCode(char))).toBe(expected);
      }
    }
  }
});

test('joined is six bits out of two neighbours', () => {
  for (let a = 0; a < 64; a++) {
    for (let b = 0; b < 64; b++) {
      for (const by of [2, 4]) {
        const char = wasm['joined']!(ALPHABET.charCodeAt(a), ALPHABET.charCodeAt(b), by);
        expect(bits(String.fromCharCode(char))).toBe(bits(ALPHABET[a]! + ALPHABET[b]!).slice(by, by + 6));
      }
    }
  }
});

test('shiftLeft moves the payload by 2 and 4 bits at every length, and writes nothing else', () => {
  withSeeds(3, (random) => {
    for (let n = 0; n <= 130; n++) {
      for (const by of [2, 4]) {
        const text = Array.from({ length: n + 1 }, () => random.pick([...ALPHABET])).join('');
        const ptr = lend(Buffer.concat([Buffer.from(text), Buffer.alloc(n + 40, '!')]));
        const dst = ptr + n + 10;
        wasm['shiftLeft']!(dst, ptr, n, by);
        expect(bits(peek(dst, n).toString())).toBe(bits(text).slice(by, by + 6 * n));
        expect(peek(dst - 9, 9).toString() + peek(dst + n, 9).toString()).toBe('!'.repeat(18));
        expect(peek(ptr, n + 1).toString()).toBe(text);
      }
    }
  });
});

test('decode and encode do what Buffer does, without padding, and write nothing else', () => {
  withSeeds(20, (random) => {
    for (let n = 0; n <= 100; n++) {
      const bytes = random.bytes(n);
      const text = bytes.toString('base64').replace(/=+$/, '');
      const ptr = lend(Buffer.concat([bytes, Buffer.alloc(200, '!')]));
      const end = wasm['base64Encode']!(ptr, n, ptr + n) >>> 0;
      expect(peek(ptr + n, end - ptr - n).toString()).toBe(text);
      expect(peek(end, 16).toString()).toBe('!'.repeat(16));
      const back = lend(Buffer.concat([Buffer.from(text), Buffer.alloc(200, '!')]));
      const len = wasm['base64Decode']!(back, text.length, back + text.length);
      expect(peek(back + text.length, len).equals(bytes)).toBe(true);
      expect(peek(back + text.length + len, 16).toString()).toBe('!'.repeat(16));
    }
  });
});

test('decodeRow reads bytes at any lead, and neither reads nor writes behind them', () => {
  withSeeds(300, (random) => {
    const lead = random.pick([0, 2, 4]);
    const bytes = random.bytes(random.pick([random.below(40), random.below(400)]));
    // The bytes before them end in the middle of a character; other bytes follow them.
    const before = lead / 2;
    const text = Buffer.concat([random.bytes(before), bytes, random.bytes(3)]).toString('base64');
    const chars = text.slice(lead === 0 ? 0 : before, Math.ceil(((before + bytes.length) * 8) / 6));
    const size = chars.length + 64;
    const ptr = lend(
      Buffer.concat([Buffer.from(chars.padEnd(size, '"')), Buffer.alloc(bytes.length + 64, 0x5a)]),
    );
    wasm['decodeRow']!(ptr, lead, ptr + size, bytes.length);
    const out = peek(ptr + size, bytes.length + 64);
    expect(out.subarray(0, bytes.length).toString('hex')).toBe(bytes.toString('hex'));
    expect(out.subarray(bytes.length).every((byte) => byte === 0x5a)).toBe(true);
  });
});

test('encodedLength, carriers and leadOf follow from the number of bytes', () => {
  for (let n = 0; n < 400; n++) {
    const text = Buffer.alloc(n).toString('base64');
    expect(Number(wasm.encodedLength(BigInt(n)))).toBe(text.length);
    expect(Number(wasm.carriers(BigInt(n)))).toBe(text.replace(/=/g, '').length);
    expect(wasm.leadOf(BigInt(n))).toBe((n * 8) % 6);
  }
  const large = 1n << 40n;
  expect(wasm.encodedLength(large)).toBe(((large + 2n) / 3n) * 4n);
  expect(wasm.carriers(large)).toBe((large * 8n + 5n) / 6n);
});
