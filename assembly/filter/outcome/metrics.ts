// The filter's metrics: `wasmcustom.routed_experts.<name>` in Envoy, shared by all plugins of a VM and by all workers.

import { defineMetric, increment, record } from '../../abi/host';
import { MetricKind } from '../../abi/types';
import { heldBytes } from '../../bytes/block';
import { Reason, reasonToken } from '../../routing/reason';
import { Outcome, outcomeToken } from './outcome';

const PREFIX = 'routed_experts.';

/** Metric ids; Envoy makes a new one for every definition, so each is defined once in a VM. */
const outcomes = new StaticArray<u32>(Outcome.Count);
const reasons = new StaticArray<u32>(Reason.Count);
let prefillFailures: u32 = 0;
let endpointsRefused: u32 = 0;
let splicedBytes: u32 = 0;
let prefillMs: u32 = 0;
let held: u32 = 0;
let defined = false;
/** What this VM has added to the gauge. */
let reported: usize = 0;

/** Called when a plugin is configured: from then on the counters show as 0. */
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
  prefillMs = defineMetric(MetricKind.Histogram, PREFIX + 'prefill_ms');
  held = defineMetric(MetricKind.Gauge, PREFIX + 'held_bytes');
}

/** An exchange has ended. `reason`: why it was not merged, if it was not. */
export function countOutcome(outcome: Outcome, reason: Reason): void {
  increment(outcomes[outcome], 1);
  if (reason != Reason.None) increment(reasons[reason], 1);
}

export function countPrefillFailure(): void {
  increment(prefillFailures, 1);
}

/** A request named an endpoint that is not allowed. */
export function countEndpointRefused(): void {
  increment(endpointsRefused, 1);
}

export function countSpliced(bytes: u64): void {
  if (bytes > 0) increment(splicedBytes, bytes);
}

export function recordPrefill(ms: u64): void {
  record(prefillMs, ms);
}

/** Changes below this are told at the end of an exchange only. */
const WORTH_TELLING: usize = 1 << 20;

/** Brings the gauge of held body bytes up to date; in the middle of an exchange only when it has changed much. */
export function reportHeld(atEnd: bool): void {
  const now = heldBytes();
  const changed = now > reported ? now - reported : reported - now;
  if (changed == 0 || (!atEnd && changed < WORTH_TELLING)) return;
  increment(held, <u64>now - <u64>reported);
  reported = now;
}
