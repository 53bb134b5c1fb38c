// Endpoints that a request may name: how they are read, which of them are allowed, and how they are
// written. What leaves the filter is written anew in one form, whatever the client's spelling was.
// This file uses nothing of the host.
//
// An endpoint:
//
//   10.0.0.1:8000 | [2001:db8::1]:8000 | prefill-0.models.svc:8000
//
// What an entry of a list allows:
//
//   10.0.0.0/8:8000-8010 | [2001:db8::/32]:8000 | prefill-0.models.svc:8000

import { hexValue, lower, readDecimal, writeDecimal } from '../../bytes/ascii';

export const enum Family {
  Ipv4,
  Ipv6,
  Name,
}

const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/** Room for an endpoint as `write` writes it: a host, a colon, and a port. */
export const ENDPOINT_BYTES: usize = MAX_NAME + 6;

const COLON: u8 = 0x3a;
const COLONS: u16 = 0x3a3a;
const DOT: u8 = 0x2e;
const SLASH: u8 = 0x2f;
const HYPHEN: u8 = 0x2d;
const OPEN: u8 = 0x5b;
const CLOSE: u8 = 0x5d;

/**
 * An address or a name, with a port. An IPv6 address that maps an IPv4 one (`::ffff:a.b.c.d`) is
 * read as that IPv4 address.
 */
@final
export class Endpoint {
  family: Family = Family.Ipv4;
  /** The bits of the address as two numbers. An IPv4 address is in the low 32 bits of `low`. */
  high: u64 = 0;
  low: u64 = 0;
  /** The name, borrowed from the text that was read. */
  namePtr: usize = 0;
  nameLen: usize = 0;
  port: u16 = 0;
  /** How many bytes the host has in what `write` has written. */
  hostLen: usize = 0;

  /** Reads the `len` bytes at `ptr` (borrowed). Returns false when they are not an endpoint. */
  read(ptr: usize, len: usize): bool {
    const split = hostEnd(ptr, len);
    const port = readPort(ptr + split + 1, len - min(split + 1, len));
    if (port == 0 || !this.readHost(ptr, split)) return false;
    this.port = port;
    return true;
  }

  /** Reads a host: an address (IPv6 in brackets), or a name. Returns false when it is neither. */
  readHost(ptr: usize, len: usize): bool {
    if (len == 0) return false;
    if (load<u8>(ptr) == OPEN) {
      return len > 2 && load<u8>(ptr + len - 1) == CLOSE && this.readIpv6(ptr + 1, len - 2);
    }
    this.family = Family.Ipv4;
    this.high = 0;
    if (isNumeric(ptr, len)) {
      const address = readIpv4(ptr, len);
      this.low = <u64>address;
      return address >= 0;
    }
    this.family = Family.Name;
    this.namePtr = ptr;
    this.nameLen = len;
    return isName(ptr, len);
  }

  /** Reads an IPv6 address without brackets. Returns false when it is none. */
  readIpv6(ptr: usize, len: usize): bool {
    if (!readIpv6(ptr, len)) return false;
    this.high = word(0);
    this.low = word(4);
    const mapped = this.high == 0 && this.low >> 32 == 0xffff;
    this.family = mapped ? Family.Ipv4 : Family.Ipv6;
    if (mapped) this.low &= 0xffffffff;
    return true;
  }

  /**
   * Writes the endpoint in its canonical form at `ptr`, where there is room for `ENDPOINT_BYTES`.
   * Returns how many bytes it has written.
   */
  write(ptr: usize): usize {
    let at = ptr;
    if (this.family == Family.Name) {
      for (let i: usize = 0; i < this.nameLen; i++) store<u8>(at++, lower(load<u8>(this.namePtr + i)));
    } else if (this.family == Family.Ipv4) {
      for (let shift = 24; shift >= 0; shift -= 8) {
        at += writeDecimal((this.low >> shift) & 0xff, at);
        if (shift > 0) store<u8>(at++, DOT);
      }
    } else {
      store<u8>(at++, OPEN);
      at = writeIpv6(this.high, this.low, at);
      store<u8>(at++, CLOSE);
    }
    this.hostLen = at - ptr;
    store<u8>(at++, COLON);
    return at + writeDecimal(this.port, at) - ptr;
  }
}

/**
 * One entry of a list: the addresses with a prefix, or a name, and the ports at which they are
 * allowed.
 */
@final
class Allowed {
  constructor(
    readonly host: Endpoint,
    /** How many leading bits of the address must match. */
    readonly prefix: i32,
    readonly firstPort: u16,
    readonly lastPort: u16,
  ) {}

  /** Whether the address has no bit set behind the prefix. */
  get isBlock(): bool {
    const host = this.host;
    if (host.family == Family.Name) return true;
    if (host.family == Family.Ipv4) return (host.low & ~mask(this.prefix + 32)) == 0;
    const inHigh = min(this.prefix, 64);
    return (host.high & ~mask(inHigh)) == 0 && (host.low & ~mask(this.prefix - inHigh)) == 0;
  }

  takes(endpoint: Endpoint): bool {
    const host = this.host;
    if (endpoint.family != host.family) return false;
    if (endpoint.port < this.firstPort || endpoint.port > this.lastPort) return false;
    if (host.family == Family.Name) {
      if (endpoint.nameLen != host.nameLen) return false;
      for (let i: usize = 0; i < host.nameLen; i++) {
        if (lower(load<u8>(endpoint.namePtr + i)) != load<u8>(host.namePtr + i)) return false;
      }
      return true;
    }
    if (host.family == Family.Ipv4) return ((endpoint.low ^ host.low) & mask(this.prefix + 32)) == 0;
    const inHigh = min(this.prefix, 64);
    if (((endpoint.high ^ host.high) & mask(inHigh)) != 0) return false;
    return ((endpoint.low ^ host.low) & mask(this.prefix - inHigh)) == 0;
  }
}

export const enum Entry {
  Ok,
  /** The text is neither an endpoint nor a block of endpoints. */
  Malformed,
  /**
   * The text is a CIDR block with bits set behind its prefix, such as `10.0.0.1/8`. It is a
   * mistake, or means a smaller block.
   */
  Bits,
  /** The text is a name, and names are not allowed in this list. */
  Name,
}

/** The endpoints that a configuration allows. */
@final
export class Endpoints {
  private entries: Allowed[] = [];

  /** Adds an entry. `names`: whether it may be a name. */
  add(text: string, names: bool): Entry {
    const len = <usize>String.UTF8.byteLength(text);
    // This memory lives as long as the list, since the names stay in it.
    const ptr = heap.alloc(max<usize>(len, 1));
    String.UTF8.encodeUnsafe(changetype<usize>(text), text.length, ptr);
    const allowed = readAllowed(ptr, len);
    if (allowed === null) return Entry.Malformed;
    if (!allowed.isBlock) return Entry.Bits;
    if (allowed.host.family == Family.Name && !names) return Entry.Name;
    this.entries.push(allowed);
    return Entry.Ok;
  }

  /** Whether a request may name this endpoint. */
  allow(endpoint: Endpoint): bool {
    for (let i = 0; i < this.entries.length; i++) if (this.entries[i].takes(endpoint)) return true;
    return false;
  }
}

/**
 * Reads an entry of a list; null when it is malformed. A name is borrowed from the text, in which
 * it becomes lower case.
 */
function readAllowed(ptr: usize, len: usize): Allowed | null {
  const split = hostEnd(ptr, len);
  if (split >= len) return null;
  let portEnd = split + 1;
  while (portEnd < len && load<u8>(ptr + portEnd) != HYPHEN) portEnd++;
  const firstPort = readPort(ptr + split + 1, portEnd - split - 1);
  const lastPort = portEnd < len ? readPort(ptr + portEnd + 1, len - portEnd - 1) : firstPort;
  if (firstPort == 0 || lastPort < firstPort) return null;
  const host = new Endpoint();
  const bracket = load<u8>(ptr) == OPEN;
  const from: usize = bracket ? 1 : 0;
  const to = split - from;
  let slash = from;
  while (slash < to && load<u8>(ptr + slash) != SLASH) slash++;
  if (bracket ? !host.readIpv6(ptr + 1, slash - 1) : !host.readHost(ptr, slash)) return null;
  if (host.family == Family.Name) {
    if (slash < to) return null;
    for (let i: usize = 0; i < slash; i++) store<u8>(ptr + i, lower(load<u8>(ptr + i)));
    return new Allowed(host, 0, firstPort, lastPort);
  }
  const bits = bracket ? 128 : 32;
  let prefix = slash < to ? readPrefix(ptr + slash + 1, to - slash - 1) : bits;
  if (prefix < 0 || prefix > bits) return null;
  if (bracket && host.family == Family.Ipv4) {
    if (prefix < 96) return null;
    prefix -= 96;
  }
  return new Allowed(host, prefix, firstPort, lastPort);
}

/** A word whose first `bits` bits, from 0 to 64, are set. */
function mask(bits: i32): u64 {
  return bits == 0 ? 0 : u64.MAX_VALUE << (64 - bits);
}

/**
 * The offset of the colon before the port. It is `len` when there is none, or when what stands
 * before it cannot be a host.
 */
function hostEnd(ptr: usize, len: usize): usize {
  let at: usize = 0;
  if (len > 0 && load<u8>(ptr) == OPEN) {
    while (at < len && load<u8>(ptr + at) != CLOSE) at++;
    at++;
  } else while (at < len && load<u8>(ptr + at) != COLON) at++;
  return at < len && load<u8>(ptr + at) == COLON ? at : len;
}

/** Reads a port, from 1 to 65535 without leading zeros; 0 when it is none. */
function readPort(ptr: usize, len: usize): u16 {
  if (len == 0 || len > 5 || load<u8>(ptr) == 0x30) return 0;
  const port = readDecimal(ptr, len);
  return port < 1 || port > 0xffff ? 0 : <u16>port;
}

/** Reads the length of a prefix, without leading zeros; -1 when it is none. */
function readPrefix(ptr: usize, len: usize): i32 {
  if (len == 0 || len > 3 || (len > 1 && load<u8>(ptr) == 0x30)) return -1;
  return <i32>readDecimal(ptr, len);
}

function isNumeric(ptr: usize, len: usize): bool {
  for (let i: usize = 0; i < len; i++) {
    const c = load<u8>(ptr + i);
    if (c != DOT && c - 0x30 > 9) return false;
  }
  return true;
}

/**
 * Reads a dotted quad; -1 when it is none. Leading zeros are refused, since some readers take such
 * numbers for octal.
 */
function readIpv4(ptr: usize, len: usize): i64 {
  let address: i64 = 0;
  let from: usize = 0;
  for (let part = 0; part < 4; part++) {
    let to = from;
    while (to < len && load<u8>(ptr + to) != DOT) to++;
    const digits = to - from;
    if (digits == 0 || digits > 3 || (digits > 1 && load<u8>(ptr + from) == 0x30)) return -1;
    const value = readDecimal(ptr + from, digits);
    if (value < 0 || value > 255) return -1;
    address = (address << 8) | value;
    // A dot must follow each part but the last, after which nothing may follow.
    if (part < 3 ? to >= len : to != len) return -1;
    from = to + 1;
  }
  return address;
}

/** The groups of the address that `readIpv6` has read, in order. */
const groups = new StaticArray<u16>(8);

/**
 * Reads the text form of RFC 4291, section 2.2: groups of hexadecimal digits, at most one `::`, and
 * possibly an IPv4 address at the end. Zones are refused. The result is in `groups`.
 */
function readIpv6(ptr: usize, len: usize): bool {
  let count = 0;
  let gap = -1;
  let at: usize = 0;
  if (len >= 2 && load<u16>(ptr) == COLONS) {
    gap = 0;
    at = 2;
  }
  // At the end of the text a group is still due, unless the text has just ended in `::`.
  while (at < len || gap != count) {
    if (count == 8) return false;
    let to = at;
    let value: u32 = 0;
    while (to < len && to < at + 4 && hexValue(load<u8>(ptr + to)) >= 0) {
      value = (value << 4) | hexValue(load<u8>(ptr + to++));
    }
    if (to == at) return false;
    if (to < len && load<u8>(ptr + to) == DOT) {
      const address = readIpv4(ptr + at, len - at);
      if (address < 0 || count > 6) return false;
      groups[count++] = <u16>(address >> 16);
      groups[count++] = <u16>address;
      break;
    }
    groups[count++] = <u16>value;
    if (to == len) break;
    if (load<u8>(ptr + to) != COLON) return false;
    at = to + 1;
    if (at < len && load<u8>(ptr + at) == COLON) {
      if (gap >= 0) return false;
      gap = count;
      at++;
    }
  }
  if (gap < 0) return count == 8;
  if (count == 8) return false;
  for (let i = 7; i >= gap; i--) {
    const from = i - (8 - count);
    groups[i] = from >= gap ? groups[from] : 0;
  }
  return true;
}

/** Four groups, from `first` on, as one word. */
function word(first: i32): u64 {
  let value: u64 = 0;
  for (let i = first; i < first + 4; i++) value = (value << 16) | groups[i];
  return value;
}

function groupOf(high: u64, low: u64, i: i32): u64 {
  return ((i < 4 ? high : low) >> ((3 - (i & 3)) * 16)) & 0xffff;
}

/**
 * Writes the form of RFC 5952: lower case, no leading zeros, and `::` for the longest run of zeros,
 * or for the first of several that are as long. Returns the address behind it.
 */
function writeIpv6(high: u64, low: u64, at: usize): usize {
  let gapAt = 8;
  let gapLen = 1;
  for (let i = 0; i < 8; i++) {
    let n = i;
    while (n < 8 && groupOf(high, low, n) == 0) n++;
    if (n - i > gapLen) {
      gapAt = i;
      gapLen = n - i;
    }
  }
  for (let i = 0; i < 8; i++) {
    if (i == gapAt) {
      if (i == 0) store<u8>(at++, COLON);
      store<u8>(at++, COLON);
      i += gapLen - 1;
      continue;
    }
    const group = groupOf(high, low, i);
    let shift = 12;
    while (shift > 0 && group >> shift == 0) shift -= 4;
    for (; shift >= 0; shift -= 4) {
      const digit = <u8>((group >> shift) & 15);
      store<u8>(at++, digit < 10 ? 0x30 + digit : 0x57 + digit);
    }
    if (i < 7) store<u8>(at++, COLON);
  }
  return at;
}

/**
 * Whether a text is a host name (RFC 1123), in which `_` is allowed, too. Its last label must begin
 * with a letter, since resolvers take names such as `127.1` and `0x7f000001` for addresses.
 */
function isName(ptr: usize, len: usize): bool {
  if (len > MAX_NAME) return false;
  let label: usize = 0;
  for (let i: usize = 0; i <= len; i++) {
    const c: u8 = i < len ? load<u8>(ptr + i) : DOT;
    if (c == DOT) {
      const size = i - label;
      if (size == 0 || size > MAX_LABEL) return false;
      if (load<u8>(ptr + label) == HYPHEN || load<u8>(ptr + i - 1) == HYPHEN) return false;
      if (i == len) return isLetter(load<u8>(ptr + label));
      label = i + 1;
    } else if (!isLetter(c) && c - 0x30 > 9 && c != HYPHEN && c != 0x5f) return false;
  }
  return false;
}

function isLetter(c: u8): bool {
  return lower(c) - 0x61 < 26;
}
