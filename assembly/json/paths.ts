// The paths that a scanner watches, as a tree. It is built once for a kind of document, and shared
// by all scanners of that kind.
//
//   node, 24 bytes of unmanaged memory that is never given back:
//     0 id | 4 element: the child for elements of an array | 8 member: first child of an object
//     12 next: next child of its parent | 16 address of its key | 20 length of its key

/** No node: neither the value nor anything in it is watched. */
export const NO_NODE: usize = 0;
/** Id of a node that is on the way to a watched one, but is not watched itself. */
export const UNWATCHED: i32 = -1;
/** Most keys of a path. Nothing is watched in containers that are nested deeper. */
export const MAX_PATH_DEPTH: i32 = 8;

/** In a path, every element of an array. */
const ANY_ELEMENT = '*';

// Offsets in a node, see above.
const ELEMENT: usize = 4;
const MEMBER: usize = 8;
const NEXT: usize = 12;
const KEY: usize = 16;
const KEY_LEN: usize = 20;
const NODE_BYTES: usize = 24;

/** Watched paths such as `choices.*.routed_experts`. Their ids are the caller's, 0 and up. */
@final
export class Paths {
  /** Node of the document itself. */
  readonly root: usize = newNode(0, 0);
  /** Bytes of the longest key: longer keys of a document need not be read. */
  longestKey: usize = 0;

  /** Watches the values at a path; `''` is the document itself. Returns this, for further calls. */
  add(path: string, id: i32): Paths {
    let node = this.root;
    if (path.length > 0) {
      const keys = path.split('.');
      assert(keys.length <= MAX_PATH_DEPTH);
      for (let i = 0; i < keys.length; i++) node = this.child(node, keys[i]);
    }
    store<i32>(node, id);
    return this;
  }

  /** The child of a node for a key of a path, made when there is none. */
  private child(parent: usize, key: string): usize {
    if (key == ANY_ELEMENT) {
      if (elementOf(parent) == NO_NODE) store<usize>(parent, newNode(0, 0), ELEMENT);
      return elementOf(parent);
    }
    const len = <usize>String.UTF8.byteLength(key);
    const ptr = heap.alloc(len);
    String.UTF8.encodeUnsafe(changetype<usize>(key), key.length, ptr);
    const known = memberOf(parent, ptr, len);
    if (known != NO_NODE) {
      heap.free(ptr);
      return known;
    }
    const node = newNode(ptr, len);
    store<usize>(node, load<usize>(parent, MEMBER), NEXT);
    store<usize>(parent, node, MEMBER);
    this.longestKey = max(this.longestKey, len);
    return node;
  }
}

/** A node without children and id; `key` is 0 where it has none. */
function newNode(key: usize, len: usize): usize {
  const node = heap.alloc(NODE_BYTES);
  memory.fill(node, 0, NODE_BYTES);
  store<i32>(node, UNWATCHED);
  store<usize>(node, key, KEY);
  store<usize>(node, len, KEY_LEN);
  return node;
}

/** Id of a node, or `UNWATCHED`; `node` may be `NO_NODE`. */
// @ts-ignore: decorator
@inline
export function idOf(node: usize): i32 {
  return node == NO_NODE ? UNWATCHED : load<i32>(node);
}

/**
 * The node for elements of an array at `node`, which is not `NO_NODE`; `NO_NODE` when they are not
 * watched.
 */
// @ts-ignore: decorator
@inline
export function elementOf(node: usize): usize {
  return load<usize>(node, ELEMENT);
}

/** Whether an object at this node has members that are watched, so that its keys must be read. */
// @ts-ignore: decorator
@inline
export function hasMembers(node: usize): bool {
  return node != NO_NODE && load<usize>(node, MEMBER) != 0;
}

/**
 * The node for the member of an object at `node` whose key is the `len` bytes at `key`; `NO_NODE`
 * when it is not watched.
 */
export function memberOf(node: usize, key: usize, len: usize): usize {
  for (let member = load<usize>(node, MEMBER); member != 0; member = load<usize>(member, NEXT)) {
    if (load<usize>(member, KEY_LEN) == len && same(load<usize>(member, KEY), key, len)) return member;
  }
  return NO_NODE;
}

/**
 * Whether two keys of `len` bytes are the same. They are short, so that a call of `memory.compare`
 * would cost more.
 */
// @ts-ignore: decorator
@inline
function same(a: usize, b: usize, len: usize): bool {
  let i: usize = 0;
  for (; i + 8 <= len; i += 8) if (load<u64>(a + i) != load<u64>(b + i)) return false;
  for (; i < len; i++) if (load<u8>(a + i) != load<u8>(b + i)) return false;
  return true;
}
