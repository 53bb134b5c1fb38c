// JSON as the engines' Python writes it: compact and in UTF-8. A `Map` stands for an object whose
// keys look like numbers, because JavaScript would sort the keys of a plain object.

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
 * The text of a member's value in the outermost object, exactly as it is written there: this keeps
 * the digits of numbers that `JSON.parse` rounds. If the key is repeated, the last member counts;
 * if there is none, the result is null. `text` must be valid JSON.
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
