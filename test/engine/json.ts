// JSON as the engines' Python writes it: compact, UTF-8. `Map` stands for objects whose keys look like numbers, which
// a JavaScript object would sort.

/** Compact JSON of plain values, arrays, objects and Maps. */
export function toJson(value: unknown): string {
  if (value instanceof Map) {
    return `{${Array.from(value, ([key, item]) => `${JSON.stringify(String(key))}:${toJson(item)}`).join(',')}}`;
  }
  if (Array.isArray(value)) {
    return typeof value[0] === 'number' ? JSON.stringify(value) : `[${value.map(toJson).join(',')}]`;
  }
  if (typeof value === 'object' && value !== null) {
    return `{${Object.entries(value)
      .map(([key, item]) => `${JSON.stringify(key)}:${toJson(item)}`)
      .join(',')}}`;
  }
  return JSON.stringify(value);
}

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/**
 * The value of a member of the outermost object as it is written, the last one where a key is repeated: numbers keep
 * digits that `JSON.parse` rounds. Null: no such member. `text` is valid JSON.
 */
export function memberText(text: string, key: string): string | null {
  let found: string | null = null;
  let depth = 0;
  let before = '';
  let member: string | null = null;
  let from = 0;
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    const closes = token === '}' || token === ']';
    if (depth === 1 && member === null && token === ':') {
      member = JSON.parse(before) as string;
      from = index + 1;
    } else if (depth === 1 && member !== null && (token === ',' || closes)) {
      if (member === key) found = text.slice(from, index).trim();
      member = null;
    }
    if (token === '{' || token === '[') depth++;
    if (closes) depth--;
    before = token;
  }
  return found;
}
