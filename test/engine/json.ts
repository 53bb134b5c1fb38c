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
