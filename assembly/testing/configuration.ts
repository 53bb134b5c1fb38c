// What a configuration has that says nothing but the cluster.

import { AuditSettings, Config } from '../filter/config/config';

const standard = new Config();

export function standardTimeout(): u32 {
  return standard.timeoutMs;
}

export function standardRetries(): i32 {
  return standard.retries;
}

export function standardHold(): f64 {
  return <f64>standard.holdBytes;
}

export function standardMaxHold(): f64 {
  return <f64>standard.maxHoldBytes;
}

export function standardMaxCapture(): f64 {
  return <f64>standard.maxCaptureBytes;
}

export function standardMaxParked(): f64 {
  return <f64>standard.maxParkedBytes;
}

const audit = new AuditSettings();

export function standardAuditFraction(): f64 {
  return audit.fraction;
}

export function standardAuditTimeout(): u32 {
  return audit.timeoutMs;
}

export function standardAuditCalls(): i32 {
  return audit.maxCalls;
}

export function standardAuditBytes(): f64 {
  return <f64>audit.maxBytes;
}
