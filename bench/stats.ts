/** The median of several repeats, and the least and most of them. */
export interface Spread {
  median: number;
  least: number;
  most: number;
}

export function spread(values: readonly number[]): Spread {
  const sorted = values.filter((value) => Number.isFinite(value)).sort((a, b) => a - b);
  if (sorted.length === 0) return { median: NaN, least: NaN, most: NaN };
  return { median: quantile(sorted, 0.5), least: sorted[0]!, most: sorted.at(-1)! };
}

/** The quantile of values in ascending order. Between two values it is interpolated linearly. */
export function quantile(sorted: readonly number[], q: number): number {
  const at = (sorted.length - 1) * q;
  const low = sorted[Math.floor(at)] ?? NaN;
  const high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - Math.floor(at));
}

/** The value with three significant digits. */
export function digits(value: number): string {
  if (!Number.isFinite(value)) return '-';
  const abs = Math.abs(value);
  return value.toFixed(abs >= 99.95 ? 0 : abs >= 9.995 ? 1 : abs >= 0.9995 ? 2 : 3);
}

export const ratio = (value: number) => (Number.isFinite(value) ? value.toFixed(2) : '-');

export const withSpread = ({ median, least, most }: Spread, format = ratio) =>
  `${format(median)} (${format(least)}..${format(most)})`;

export const megabytes = (bytes: number) => digits(bytes / 1e6);
