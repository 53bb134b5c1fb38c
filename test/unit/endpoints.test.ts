// Endpoints that a request names: which texts are endpoints, how the filter writes them, and which
// ones a list allows. They are compared with node:net and net.BlockList, which read addresses
// independently.

import { BlockList, isIPv4, isIPv6 } from 'node:net';
import { describe, expect, test } from 'vitest';
import { Random, withSeeds } from './random.ts';
import { checkLeaks, lend, takeOutput, wasm } from './wasm.ts';

checkLeaks();

enum Entry {
  Ok,
  Malformed,
  Bits,
  Name,
}

/** The endpoint as the filter writes it; null when the text is not an endpoint. */
function read(text: string): string | null {
  const bytes = Buffer.from(text, 'latin1');
  if (!wasm['endpointRead']!(lend(bytes), bytes.length)) return null;
  const hostLen = wasm['endpointWrite']!();
  const written = takeOutput().toString('latin1');
  expect(written[hostLen]).toBe(':');
  return written;
}

function add(text: string, names = true): Entry {
  const bytes = Buffer.from(text);
  return wasm['endpointsAdd']!(lend(bytes), bytes.length, +names);
}

/** Whether a list allows an endpoint. */
function allows(list: string[], text: string): boolean {
  wasm['endpointsClear']!();
  for (const entry of list) expect(add(entry), entry).toBe(Entry.Ok);
  const bytes = Buffer.from(text);
  expect(wasm['endpointRead']!(lend(bytes), bytes.length), text).toBe(1);
  return Boolean(wasm['endpointsAllow']!());
}

describe('an endpoint', () => {
  test.each([
    ['10.0.0.1:8000', '10.0.0.1:8000'],
    ['0.0.0.0:1', '0.0.0.0:1'],
    ['255.255.255.255:65535', '255.255.255.255:65535'],
    ['[::1]:80', '[::1]:80'],
    ['[::]:80', '[::]:80'],
    ['[1::]:80', '[1::]:80'],
    ['[2001:DB8::0001]:80', '[2001:db8::1]:80'],
    ['[2001:db8:0:0:1:0:0:1]:80', '[2001:db8::1:0:0:1]:80'],
    ['[2001:0:0:1:0:0:0:1]:80', '[2001:0:0:1::1]:80'],
    ['[1:2:3:4:5:6:7:8]:80', '[1:2:3:4:5:6:7:8]:80'],
    ['[1:2:3:4:5:6:7::]:80', '[1:2:3:4:5:6:7:0]:80'],
    ['[::2:3:4:5:6:7:8]:80', '[0:2:3:4:5:6:7:8]:80'],
    ['[1:0:3:4:5:6:7:8]:80', '[1:0:3:4:5:6:7:8]:80'],
    ['[64:ff9b::10.0.0.1]:80', '[64:ff9b::a00:1]:80'],
    ['[1:2:3:4:5:6:1.2.3.4]:80', '[1:2:3:4:5:6:102:304]:80'],
    // The kernel would connect to the IPv4 address.
    ['[::ffff:10.0.0.1]:80', '10.0.0.1:80'],
    ['[::FFFF:a00:1]:80', '10.0.0.1:80'],
    ['[0:0:0:0:0:ffff:0a00:0001]:80', '10.0.0.1:80'],
    ['[::10.0.0.1]:80', '[::a00:1]:80'],
    ['[::ffff:0:10.0.0.1]:80', '[::ffff:0:a00:1]:80'],
    ['localhost:80', 'localhost:80'],
    ['Prefill-0.Models.SVC:80', 'prefill-0.models.svc:80'],
    ['1a.b_c.d9:80', '1a.b_c.d9:80'],
    [`${'a'.repeat(63)}.b:80`, `${'a'.repeat(63)}.b:80`],
    [`${'a.'.repeat(126)}b:65535`, `${'a.'.repeat(126)}b:65535`],
  ])('%s is %s', (text, written) => {
    expect(read(text)).toBe(written);
    // What the filter has written, it reads as the same endpoint.
    expect(read(written)).toBe(written);
  });

  test.each([
    '',
    ':',
    ':80',
    '80',
    '10.0.0.1',
    '10.0.0.1:',
    '10.0.0.1:0',
    '10.0.0.1:00080',
    '10.0.0.1:080',
    '10.0.0.1:65536',
    '10.0.0.1:99999999999999999999',
    '10.0.0.1:-1',
    '10.0.0.1:+80',
    '10.0.0.1:8 0',
    '10.0.0.1:80 ',
    ' 10.0.0.1:80',
    '10.0.0.1:80/',
    '10.0.0.1:http',
    '10.0.0.1:80:80',
    '10.0.0.1::80',
    '10.0.0.1:80-81',
    '10.0.0.0/8:80',
    '10.0.0:80',
    '10.0.0.0.1:80',
    '10.0.0.1.:80',
    '.10.0.0.1:80',
    '10..0.1:80',
    '10.0.0.256:80',
    '010.0.0.1:80',
    '10.0.0.01:80',
    '10.0.0.0000:80',
    '0x0a.0.0.1:80',
    '10.0.0.0x1:80',
    '167772161:80',
    '127.1:80',
    '0x7f000001:80',
    'a.0x7f000001:80',
    'a.1:80',
    '[10.0.0.1]:80',
    '10.0.0.1]:80',
    '[::1:80',
    '::1:80',
    '::1]:80',
    '[::1]80',
    '[::1]',
    '[]:80',
    '[:]:80',
    '[:::]:80',
    '[1:::2]:80',
    '[1::2::3]:80',
    '[1:2:3:4:5:6:7]:80',
    '[1:2:3:4:5:6:7:8:9]:80',
    '[1:2:3:4:5:6:7:8::]:80',
    '[::1:2:3:4:5:6:7:8]:80',
    '[1:2:3:4::5:6:7:8]:80',
    '[1:2:3:4:5:6:7:1.2.3.4]:80',
    '[12345::]:80',
    '[g::]:80',
    '[:1]:80',
    '[1:]:80',
    '[::1:]:80',
    '[fe80::1%eth0]:80',
    '[fe80::1%25eth0]:80',
    '[::1.2.3]:80',
    '[::1.2.3.04]:80',
    '[::1.2.3.4:5]:80',
    '[::1/128]:80',
    '[[::1]]:80',
    '[ ::1]:80',
    '-a:80',
    'a-:80',
    'a..b:80',
    '.a:80',
    'a.:80',
    'a b:80',
    'a@b:80',
    'http://a:80',
    'a/b:80',
    'a\0b:80',
    'caf\u00e9:80',
    `${'a'.repeat(64)}.b:80`,
    `${'a.'.repeat(127)}b:80`,
  ])('%j is none', (text) => expect(read(text)).toBe(null));

  test('addresses of any spelling are read as Node reads them', () => {
    withSeeds(3000, (random) => {
      const text = spelling(random);
      const right = isIPv6(text) && !text.includes('%');
      const written = read(`[${text}]:80`);
      expect(written !== null, text).toBe(right);
      if (written === null) return;
      // WHATWG URLs write an address in the canonical form of RFC 5952, except for an IPv4 address
      // inside it.
      const canonical = new URL(`http://[${text}]:8`).host.slice(1, -3);
      const inside = /^::ffff:([0-9a-f]+):([0-9a-f]+)$/.exec(canonical);
      if (!inside) return expect(written).toBe(`[${canonical}]:80`);
      const [a, b] = inside.slice(1).map((group) => parseInt(group, 16)) as [number, number];
      expect(written).toBe(`${a >> 8}.${a & 255}.${b >> 8}.${b & 255}:80`);
    });
  });

  test('dotted quads are read as Node reads them', () => {
    withSeeds(2000, (random) => {
      const part = () => random.pick(['0', '1', '01', '255', '256', '', '9', '99', '0x1', '1000', ' 1']);
      const text = Array.from({ length: random.pick([3, 4, 4, 4, 4, 4, 5]) }, part).join('.');
      expect(read(`${text}:80`), text).toBe(isIPv4(text) ? `${text}:80` : null);
    });
  });
});

/** A text that resembles an IPv6 address, correct or not. */
function spelling(random: Random): string {
  const group = () => random.pick(['0', '0', '0', 'ffff', '1', '00a', 'ABcd', '0000', '12345', 'g']);
  const groups = Array.from({ length: random.below(10) }, () =>
    random.below(12) === 0
      ? random.pick(['1.2.3.4', '255.255.0.0', '1.2.3', '01.2.3.4'])
      : group()
          .replace('g', random.below(3) ? '1' : 'g')
          .replace('12345', random.below(3) ? '2' : '12345'),
  );
  if (random.below(6) === 0) return `::ffff:${random.pick(['1.2.3.4', '10.0.0.1', '102:304', 'ffff:0'])}`;
  const gap = random.below(groups.length + 1);
  const [before, behind] = [groups.slice(0, gap).join(':'), groups.slice(gap).join(':')];
  const joint = random.pick([':', '::', '::', '::', ':::']);
  return random.below(40) === 0 ? `${before}${joint}${behind}%1` : `${before}${joint}${behind}`;
}

describe('a list', () => {
  test.each([
    ['10.0.0.1:8000', Entry.Ok],
    ['10.0.0.0/8:8000', Entry.Ok],
    ['0.0.0.0/0:1-65535', Entry.Ok],
    ['10.0.0.1/32:80', Entry.Ok],
    ['[fd00::/8]:8000-8010', Entry.Ok],
    ['[::/0]:80', Entry.Ok],
    ['[::1/128]:80', Entry.Ok],
    ['[::ffff:10.0.0.0/104]:80', Entry.Ok],
    ['prefill:80-81', Entry.Ok],
    ['10.0.0.1/8:80', Entry.Bits],
    ['10.0.0.1/31:80', Entry.Bits],
    ['0.0.0.1/0:80', Entry.Bits],
    ['[::ffff:10.0.0.1/104]:80', Entry.Bits],
    ['[1::/15]:80', Entry.Bits],
    ['[::1/64]:80', Entry.Bits],
    ['[::1/127]:80', Entry.Bits],
    ['10.0.0.0/33:80', Entry.Malformed],
    ['10.0.0.0/08:80', Entry.Malformed],
    ['10.0.0.0/:80', Entry.Malformed],
    ['10.0.0.0/-1:80', Entry.Malformed],
    ['10.0.0.0/8/8:80', Entry.Malformed],
    ['0.0.0.0/1000:80', Entry.Malformed],
    ['[fd00::1/8]:80', Entry.Bits],
    ['[fd00::]/8:80', Entry.Malformed],
    ['[fd00::/129]:80', Entry.Malformed],
    ['[::ffff:10.0.0.0/95]:80', Entry.Malformed],
    ['fd00::/8:80', Entry.Malformed],
    ['prefill/8:80', Entry.Malformed],
    ['prefill', Entry.Malformed],
    ['10.0.0.1', Entry.Malformed],
    ['10.0.0.1:', Entry.Malformed],
    ['10.0.0.1:-', Entry.Malformed],
    ['10.0.0.1:80-', Entry.Malformed],
    ['10.0.0.1:-80', Entry.Malformed],
    ['10.0.0.1:81-80', Entry.Malformed],
    ['10.0.0.1:80-81-82', Entry.Malformed],
    ['10.0.0.1:0-80', Entry.Malformed],
    ['10.0.0.1:*', Entry.Malformed],
    ['10.0.0.1:80,10.0.0.2:80', Entry.Malformed],
    ['*:80', Entry.Malformed],
    ['', Entry.Malformed],
  ])('takes %j: %i', (text, entry) => expect(add(text)).toBe(entry));

  test('takes names only where they are wanted', () => {
    expect(add('prefill:80', false)).toBe(Entry.Name);
    expect(add('10.0.0.1:80', false)).toBe(Entry.Ok);
  });

  test('allows ports of a range, and no others', () => {
    const list = ['10.0.0.1:8000-8010'];
    const allowed = [7999, 8000, 8005, 8010, 8011].map((port) => allows(list, `10.0.0.1:${port}`));
    expect(allowed).toEqual([false, true, true, true, false]);
  });

  test('allows names in any letter case, and no others', () => {
    expect(allows(['Prefill-0:80'], 'pREFILL-0:80')).toBe(true);
    for (const name of ['prefill-1', 'prefill-00', 'prefill', 'x.prefill-0', 'prefill-0.x']) {
      expect(allows(['prefill-0:80'], `${name}:80`), name).toBe(false);
    }
    expect(allows(['0.0.0.0/0:80', '[::/0]:80'], 'prefill-0:80')).toBe(false);
  });

  test('an IPv4 address inside an IPv6 one is that IPv4 address, on both sides', () => {
    expect(allows(['10.0.0.0/8:80'], '[::ffff:10.1.2.3]:80')).toBe(true);
    expect(allows(['[::ffff:10.0.0.0/104]:80'], '10.1.2.3:80')).toBe(true);
    expect(allows(['[::ffff:10.0.0.0/104]:80'], '11.1.2.3:80')).toBe(false);
    // A block of IPv6 addresses contains no IPv4 address.
    expect(allows(['[::/0]:80'], '[::ffff:10.1.2.3]:80')).toBe(false);
    expect(allows(['[::/0]:80'], '[::fffe:10.1.2.3]:80')).toBe(true);
    expect(allows(['0.0.0.0/0:80'], '[::1]:80')).toBe(false);
  });

  test('nothing is allowed by an empty list', () => expect(allows([], '10.0.0.1:80')).toBe(false));

  test('blocks hold the addresses that Node says', () => {
    withSeeds(3000, (random) => {
      const v6 = random.below(2) === 0;
      const bytes = v6 ? 16 : 4;
      const network = Buffer.from(Array.from({ length: bytes }, () => random.below(256)));
      const prefix = random.below(bytes * 8 + 1);
      for (let bit = prefix; bit < bytes * 8; bit++) network[bit >> 3]! &= ~(0x80 >> (bit & 7));
      const address = Buffer.from(network);
      for (let flips = random.below(3); flips > 0; flips--) {
        const bit = random.below(bytes * 8);
        address[bit >> 3]! ^= 0x80 >> (bit & 7);
      }
      const text = (of: Buffer) =>
        v6 ? of.toString('hex').replace(/(....)(?=.)/g, '$1:') : [...of].join('.');
      const block = new BlockList();
      block.addSubnet(text(network), prefix, v6 ? 'ipv6' : 'ipv4');
      const [open, close] = v6 ? ['[', ']'] : ['', ''];
      const allowed = allows(
        [`${open}${text(network)}/${prefix}${close}:80`],
        `${open}${text(address)}${close}:80`,
      );
      expect(allowed, `${text(address)} in ${text(network)}/${prefix}`).toBe(
        block.check(text(address), v6 ? 'ipv6' : 'ipv4'),
      );
    });
  });
});
