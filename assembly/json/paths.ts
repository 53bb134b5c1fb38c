// The paths that a scanner watches, as a tree. Built once per kind of document; shared by all scanners of that kind.

/** No node: nothing below this value is watched. */
export const NO_NODE: i32 = -1;
/** The node is on the way to a watched path but not watched itself. */
export const UNWATCHED: i32 = -1;
/** Depth of the deepest watched path; containers below it are skipped. */
export const MAX_PATH_DEPTH: i32 = 8;

/** Member `*` of a path: every element of an array. */
const ANY_ELEMENT = '*';


@final
class Node {
  id: i32 = UNWATCHED;
  keyPtr: usize = 0;
  keyLen: usize = 0;
  /** Child for array elements. */
  element: i32 = NO_NODE;
  members: StaticArray<i32> = [];
}

/** Watched paths such as `choices.*.routed_experts`; `''` is the root. Ids are the caller's, 0 and up. */
@final
export class Paths {
  private nodes: Node[] = [new Node()];
  /** Length of the longest key: longer keys need not be read. */
  longestKey: usize = 0;

  add(path: string, id: i32): Paths {
    let at = 0;
    if (path.length > 0) {
      const keys = path.split('.');
      assert(keys.length <= MAX_PATH_DEPTH);
      for (let i = 0; i < keys.length; i++) at = this.child(at, keys[i]);
    }
    this.nodes[at].id = id;
    return this;
  }

  /** Id of a node, or `UNWATCHED`. */
  idOf(node: i32): i32 {
    return node < 0 ? UNWATCHED : unchecked(this.nodes[node]).id;
  }

  /** Node of an array's elements. */
  elementOf(node: i32): i32 {
    return node < 0 ? NO_NODE : unchecked(this.nodes[node]).element;
  }

  /** Whether keys of an object at this node need to be read. */
  hasMembers(node: i32): bool {
    return node >= 0 && unchecked(this.nodes[node]).members.length > 0;
  }

  /** Node of the member whose key is the `len` bytes at `key`. */
  memberOf(node: i32, key: usize, len: usize): i32 {
    const members = unchecked(this.nodes[node]).members;
    for (let i = 0; i < members.length; i++) {
      const member = unchecked(this.nodes[unchecked(members[i])]);
      if (member.keyLen == len && memory.compare(member.keyPtr, key, len) == 0) return unchecked(members[i]);
    }
    return NO_NODE;
  }

  private child(parent: i32, key: string): i32 {
    const element = key == ANY_ELEMENT;
    const bytes = String.UTF8.encode(key);
    const known = element
      ? this.nodes[parent].element
      : this.memberOf(parent, changetype<usize>(bytes), bytes.byteLength);
    if (known >= 0) return known;
    const node = new Node();
    this.nodes.push(node);
    const at = this.nodes.length - 1;
    const owner = this.nodes[parent];
    if (element) {
      owner.element = at;
      return at;
    }
    node.keyLen = bytes.byteLength;
    node.keyPtr = heap.alloc(node.keyLen);
    memory.copy(node.keyPtr, changetype<usize>(bytes), node.keyLen);
    this.longestKey = max(this.longestKey, node.keyLen);
    const grown = new StaticArray<i32>(owner.members.length + 1);
    for (let i = 0; i < owner.members.length; i++) grown[i] = owner.members[i];
    grown[owner.members.length] = at;
    owner.members = grown;
    return at;
  }
}
