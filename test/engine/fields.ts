// Readers of a request's fields that accept and refuse the same values as Pydantic.

import { ApiError } from './call.ts';

export type Json = Record<string, unknown>;

export function bad(message: string, param: string | null = null): ApiError {
  return new ApiError(400, message, 'BadRequestError', param);
}

/** The error of a request that its class has let pass. */
export function refused(message: string, param: string | null = null): ApiError {
  return new ApiError(400, message, 'BadRequestError', param, 'serving');
}

export function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body));
  } catch {
    throw bad('JSON decode error');
  }
}

export function object(value: unknown, param: string): Json {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw bad('Input should be a valid dictionary', param);
  }
  return value as Json;
}

export function tokenIds(value: unknown, param: string): number[] {
  if (!Array.isArray(value)) throw bad('Input should be a valid list', param);
  for (const id of value) {
    if (!Number.isInteger(id)) throw bad('Input should be a valid integer', param);
    if (id < 0) throw bad('Input should be greater than or equal to 0', param);
  }
  return value;
}

/**
 * Reads an integer as Pydantic's lax mode does, which also accepts `"5"`, `"5.0"` and `true`.
 * Returns null
 * if the value is null, or if it is absent and there is no default.
 */
export function integer(json: Json, key: string, absent: number | null = null): number | null {
  if (!(key in json)) return absent;
  const value = json[key];
  if (value === null) return null;
  if (typeof value === 'boolean') return Number(value);
  if (typeof value === 'string' && /^[+-]?\d+(_\d+)*(\.0+)?$/.test(value.trim())) {
    return Number(value.replaceAll('_', ''));
  }
  if (typeof value === 'number' && Number.isInteger(value)) return value;
  throw bad('Input should be a valid integer', key);
}

const BOOLEANS: Record<string, boolean> = {
  ...{ true: true, t: true, yes: true, y: true, on: true, '1': true },
  ...{ false: false, f: false, no: false, n: false, off: false, '0': false },
};

/** Reads a boolean as Pydantic's lax mode does, which also accepts 0, 1 and a few words. */
export function bool(json: Json, key: string): boolean | null {
  const value = json[key] ?? null;
  if (value === null || typeof value === 'boolean') return value;
  const word =
    typeof value === 'string' || typeof value === 'number'
      ? BOOLEANS[String(value).toLowerCase()]
      : undefined;
  if (word === undefined) throw bad('Input should be a valid boolean', key);
  return word;
}

/** Reads a number as Pydantic's lax mode does, which also accepts `"0.5"` and `true`. */
export function float(json: Json, key: string, absent: number): number {
  const value = json[key] ?? null;
  if (value === null) return absent;
  const known = typeof value !== 'object' && value !== '' ? Number(value) : NaN;
  if (Number.isNaN(known)) throw bad('Input should be a valid number', key);
  return known;
}

export function required<T>(value: T | null, key: string): T {
  if (value === null) throw bad('Input should be a valid integer', key);
  return value;
}

/** Python's truth value: an empty dictionary is false. */
export function truthy(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.keys(value).length > 0;
  return Boolean(value);
}

export function logprobCount(json: Json, key: string): number | null {
  const value = json[key] ?? null;
  if (value === null) return null;
  if (typeof value !== 'number' || !Number.isInteger(value)) throw bad(`\`${key}\` must be an integer.`, key);
  if (value < -1) throw bad(`\`${key}\` must be a positive value or -1.`, key);
  return value;
}
