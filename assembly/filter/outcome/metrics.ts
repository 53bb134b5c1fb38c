// The filter's metrics. In Envoy they are `wasmcustom.routed_experts.<name>`, and all plugins of a
// VM and all workers share them.

import { defineMetric, increment, record } from '../../abi/host';
import { MetricKind } from '../../abi/types';
import { heldBytes } from '../../bytes/block';
import { Reason, reasonToken } from '../../routing/reason';
import { Outcome, outcomeToken } from './outcome';

const PREFIX = 'routed_experts.';

/**
 * The ids of metrics. Envoy makes a new id for each definition, so a VM defines each metric once.
 */
const outcomes = new StaticArray<u32>(Outcome.Count);
const reasons = new StaticArray<u32>(Reason.Count);
let prefillFailures: u32 = 0;
let endpointsRefused: u32 = 0;
let splicedBytes: u32 = 0;
let decodeCachedTokens: u32 = 0;
let decodeComputedTokens: u32 = 0;
let decodeUntold: u32 = 0;
let prefillMs: u32 = 0;
let held: u32 = 0;
let auditRequests: u32 = 0;
let auditFailed: u32 = 0;
let auditSkipped: u32 = 0;
let auditRequestsWrong: u32 = 0;
let auditRows: u32 = 0;
let auditRowsDiffering: u32 = 0;
let auditRowsWrong: u32 = 0;
let defined = false;
/** The bytes that this VM has added to the gauge. */
let reported: usize = 0;

/**
 * Defines the metrics. Called when a plugin is configured, so that Envoy shows the counters from
 * then on, as 0.
 */
export function defineMetrics(): void {
  if (defined) return;
  defined = true;
  for (let outcome = 0; outcome < Outcome.Count; outcome++) {
    outcomes[outcome] = defineMetric(MetricKind.Counter, PREFIX + outcomeToken(outcome));
  }
  for (let reason = 1; reason < Reason.Count; reason++) {
    reasons[reason] = defineMetric(MetricKind.Counter, PREFIX + 'unmerged.' + reasonToken(reason));
  }
  prefillFailures = defineMetric(MetricKind.Counter, PREFIX + 'prefill_failures');
  endpointsRefused = defineMetric(MetricKind.Counter, PREFIX + 'endpoints_refused');
  splicedBytes = defineMetric(MetricKind.Counter, PREFIX + 'spliced_bytes');
  decodeCachedTokens = defineMetric(MetricKind.Counter, PREFIX + 'decode_cached_tokens');
  decodeComputedTokens = defineMetric(MetricKind.Counter, PREFIX + 'decode_computed_tokens');
  decodeUntold = defineMetric(MetricKind.Counter, PREFIX + 'decode_untold');
  prefillMs = defineMetric(MetricKind.Histogram, PREFIX + 'prefill_ms');
  held = defineMetric(MetricKind.Gauge, PREFIX + 'held_bytes');
  auditRequests = defineMetric(MetricKind.Counter, PREFIX + 'audit.requests');
  auditFailed = defineMetric(MetricKind.Counter, PREFIX + 'audit.failed');
  auditSkipped = defineMetric(MetricKind.Counter, PREFIX + 'audit.skipped');
  auditRequestsWrong = defineMetric(MetricKind.Counter, PREFIX + 'audit.requests_wrong');
  auditRows = defineMetric(MetricKind.Counter, PREFIX + 'audit.rows');
  auditRowsDiffering = defineMetric(MetricKind.Counter, PREFIX + 'audit.rows_differing');
  auditRowsWrong = defineMetric(MetricKind.Counter, PREFIX + 'audit.rows_wrong');
}

/**
 * Counts an exchange that has ended. `reason` says why its response was not merged, if there is a
 * reason.
 */
export function countOutcome(outcome: Outcome, reason: Reason): void {
  increment(outcomes[outcome], 1);
  if (reason != Reason.None) increment(reasons[reason], 1);
}

export function countPrefillFailure(): void {
  increment(prefillFailures, 1);
}

/** Counts a request that names an endpoint that it may not name. */
export function countEndpointRefused(): void {
  increment(endpointsRefused, 1);
}

export function countSpliced(bytes: u64): void {
  if (bytes > 0) increment(splicedBytes, bytes);
}

/** Counts the tokens of a prompt that decode did not compute itself, and those that it did. */
export function countDecodeCache(cached: u64, computed: u64): void {
  if (cached > 0) increment(decodeCachedTokens, cached);
  if (computed > 0) increment(decodeComputedTokens, computed);
}

/** Counts an exchange of P/D in which decode has told neither. */
export function countDecodeUntold(): void {
  increment(decodeUntold, 1);
}

export function recordPrefill(ms: u64): void {
  record(prefillMs, ms);
}

/** Counts a call that asks for an audit. */
export function countAuditRequest(): void {
  increment(auditRequests, 1);
}

/** Counts an audit that brought no rows to compare. */
export function countAuditFailed(): void {
  increment(auditFailed, 1);
}

/** Counts an exchange that was chosen for an audit, for which there is no room. */
export function countAuditSkipped(): void {
  increment(auditSkipped, 1);
}

/** Counts the rows that an audit has compared; of those that differ, some may be wrong. */
export function countAudited(rows: u64, differing: u64, wrong: u64): void {
  increment(auditRows, rows);
  if (differing > 0) increment(auditRowsDiffering, differing);
  if (wrong == 0) return;
  increment(auditRowsWrong, wrong);
  increment(auditRequestsWrong, 1);
}

/** While an exchange runs, changes below this many bytes are not reported. */
const WORTH_TELLING: usize = 1 << 20;

/**
 * Brings the gauge of held body bytes up to date. Unless an exchange is `atEnd`, small changes are
 * left for later.
 */
export function reportHeld(atEnd: bool): void {
  const now = heldBytes();
  const changed = now > reported ? now - reported : reported - now;
  if (changed == 0 || (!atEnd && changed < WORTH_TELLING)) return;
  increment(held, <u64>now - <u64>reported);
  reported = now;
}
