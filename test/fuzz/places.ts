// The places where replies hold routing, in any form, and the token counts beside it.

import { all, integer, isNull, last, type Node } from './json.ts';

const OF_CHOICE = [['routed_experts'], ['prompt_routed_experts'], ['meta_info', 'routed_experts']];
const OF_ELEMENT = [
  ['meta_info', 'routed_experts'],
  ['sglext', 'routed_experts'],
];
const OF_ROOT = [['prompt_routed_experts'], ...OF_ELEMENT];

export interface Place {
  node: Node;
  /**
   * The index of the choice, or of the element of a list, that holds the value; -1 if neither does.
   */
  choice: number;
  /** The path of the value inside the choice or the element, such as `meta_info.routed_experts`. */
  key: string;
}

const follow = (node: Node, path: string[]): Node[] =>
  path.reduce<Node[]>((nodes, key) => nodes.flatMap((each) => all(each, key)), [node]);

/** The choices of a document. */
export const choicesOf = (root: Node): Node[] => all(root, 'choices').flatMap(({ items }) => items);

/** Every value of a document at a place for routing that is not null, in order. */
export function places(text: string, root: Node): Place[] {
  return everyPlace(root).filter(({ node }) => !isNull(text, node));
}

/** The same, including values that are null. */
export function everyPlace(root: Node): Place[] {
  const found: Place[] = [];
  const add = (node: Node, path: string[], choice: number) => {
    for (const value of follow(node, path)) found.push({ node: value, choice, key: path.join('.') });
  };
  for (const path of OF_ROOT) add(root, path, -1);
  choicesOf(root).forEach((item, i) => OF_CHOICE.forEach((path) => add(item, path, i)));
  root.items.forEach((item, i) => OF_ELEMENT.forEach((path) => add(item, path, i)));
  return found.sort((a, b) => a.node.start - b.node.start);
}

/** Whether a value is in SGLang's format. */
export const isRaw = ({ key }: Place): boolean => key.includes('.');

/**
 * A token count of a reply, or of an `element` of a list. -1 means that no count is given; null
 * means that two different counts are.
 */
export function countOf(text: string, holder: Node, key: string, element = false): number | null {
  const said = (element ? ['meta_info'] : ['usage', 'meta_info']).map((of) =>
    integer(text, last(last(holder, of), key)),
  );
  const known = [...new Set(said.filter((count) => count >= 0))];
  return known.length > 1 ? null : (known[0] ?? -1);
}
