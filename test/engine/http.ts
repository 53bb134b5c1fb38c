// Reads the path and the headers of a request, and splits a body into pieces.

import type { EngineRequest } from '../scenario.ts';

export function pathOf(request: EngineRequest): string {
  return request.path.split('?', 1)[0]!;
}

export function header(request: EngineRequest, name: string): string | undefined {
  return request.headers.find(([key]) => key === name)?.[1];
}

/** Splits `body` into pieces of at most `bytes` bytes. */
export function split(body: Buffer, bytes: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < body.length; at += bytes) pieces.push(body.subarray(at, at + bytes));
  return pieces;
}
