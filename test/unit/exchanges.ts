// Requests as a test writes them, and replies as it reads them.

import { expect } from 'vitest';
import type { EngineReply, EngineRequest, Header } from '../scenario.ts';

export type Json = Record<string, any>;

export function post(path: string, body: unknown, headers: Header[] = []): EngineRequest {
  const bytes = Buffer.isBuffer(body)
    ? body
    : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  return { method: 'POST', path, headers: [['content-type', 'application/json'], ...headers], body: bytes };
}

export function text(reply: EngineReply): string {
  return Buffer.concat(reply.chunks).toString();
}

export function json(reply: EngineReply): Json {
  return JSON.parse(text(reply));
}

export function ok(reply: EngineReply): Json {
  expect(reply.fault).toBeUndefined();
  expect(reply.status, text(reply)).toBe(200);
  return json(reply);
}
