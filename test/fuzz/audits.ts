// Checks what an audit has asked and found.

import { isDeepStrictEqual } from 'node:util';
import type { Result } from '../scenario.ts';
import { NATIVE } from '../scenarios/messages.ts';
import type { FuzzCase } from './case.ts';
import { askedOf, connectorOf, jsonOf } from './exchange.ts';
import { auditLeg, type Json } from './legs.ts';

const CACHED = /"cached_tokens"\s*:\s*(?!0\s*[,}])/;

/** What is wrong with the audit of a case; null if nothing is. `audited`: there may be one. */
export function auditWrong(of: FuzzCase, result: Result, audited: boolean): string | null {
  const { auditRequests, counters, logged } = result;
  const count = (name: string) => counters[`routed_experts.audit.${name}`] ?? 0;
  const said = (what: string) => `${what}: ${JSON.stringify(counters)}, ${result.auditLog.join()}`;
  const [requests, failed, skipped] = [count('requests'), count('failed'), count('skipped')];
  if (auditRequests.length !== requests) return said(`${auditRequests.length} audits`);
  const rows = Number(/^merged; rows=(\d+)/.exec(logged ?? '')?.[1] ?? 0);
  const due = audited && of.audit !== undefined && rows > 0 ? 1 : 0;
  if (requests + skipped !== due) return said('audited when it must not be, or the other way round');
  // Rows that have no room in the VM are parked, which the reference does not follow.
  if (skipped > 0) return of.config['max_capture_bytes'] === undefined ? said('skipped') : null;
  if (requests === 0) return null;
  const wrong = askedWrong(of, result);
  if (wrong !== null) return wrong;
  if (failed + (count('rows') === rows ? 1 : 0) !== 1) return said(`neither failed nor ${rows} rows`);
  if (!of.audit!.same || of.prefill.length > 1) return null;
  if (failed > 0)
    return CACHED.test(of.audit!.reply.body) ? null : said("an audit with prefill's rows failed");
  return count('rows_differing') > 0 ? said("prefill's rows differ from themselves") : null;
}

function askedWrong(of: FuzzCase, { auditRequests }: Result): string | null {
  const [request] = auditRequests;
  const asked = askedOf(of);
  if (!asked?.fit) return 'an audit of what P/D does not serve';
  // JSON.parse does not read a damaged request in every detail as the filter does.
  if (of.notes.some((note) => note.startsWith('request'))) return null;
  const { cache_salt, extra_key, kv_transfer_params, ...sent } = jsonOf(request!) as Json;
  const { cache_salt: _, extra_key: __, ...leg } = auditLeg(asked);
  const tagged = connectorOf(of) === 'shared_storage';
  const salt = of.path === NATIVE ? extra_key : cache_salt;
  const right =
    isDeepStrictEqual(sent, leg) &&
    typeof salt === 'string' &&
    salt.length === 36 &&
    !kv_transfer_params === !tagged;
  return right ? null : `the audit asked ${request!.body.toString('latin1')}`;
}
