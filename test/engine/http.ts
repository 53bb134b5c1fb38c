// Small readers of requests, and bodies in pieces.

import type { EngineRequest } from '../scenario.ts';

export function pathOf(request: EngineRequest): string {
  return request.path.split('?', 1)[0]!;
}

export function header(request: EngineRequest, name: string): string | undefined {
  return request.headers.find(([key]) => key === name)?.[1];
}

/** `body` in pieces of `bytes`. */
export function split(body: Buffer, bytes: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < body.length; at += bytes) pieces.push(body.subarray(at, at + bytes));
  return pieces;
}
