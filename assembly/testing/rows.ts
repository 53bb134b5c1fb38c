// Rows: the examination of an exchange, and the reader of rows in base64.

import { Examination, Leg, Model, RowCheck } from '../routing/examination';
import { Dtype } from '../routing/npy';
import { Reason } from '../routing/reason';
import { RowReader } from '../routing/row_reader';
import { exchange, output } from './shared';

const rowReader = new RowReader();

/**
 * Begins a new exchange. `layers`, `topK` and `experts` are those of the configuration's `model`; 0
 * where it does not say.
 */
export function examinationStart(check: RowCheck, layers: f64, topK: f64, experts: f64): void {
  examinationFree();
  const known = layers + topK + experts > 0;
  exchange.examination = new Examination(
    check,
    known ? new Model(<u64>layers, <u64>topK, <u64>experts) : null,
  );
}

export function examinationFree(): void {
  rowReader.free();
  exchange.examination.free();
}

/** Examines row `row` of a leg, whose items are at `bytes`. */
export function examinationRow(
  leg: Leg,
  row: f64,
  bytes: usize,
  dtype: Dtype,
  layers: f64,
  topK: f64,
): Reason {
  return exchange.examination.examineRow(leg, <i64>row, bytes, dtype, <u64>layers, <u64>topK);
}

export function examinationJudge(early: bool): Reason {
  return exchange.examination.judge(early);
}

/** Writes the place of the fault into the output. */
export function examinationDescribe(): void {
  const text = String.UTF8.encode(exchange.examination.describe());
  output.write(changetype<usize>(text), text.byteLength);
}

/** Begins to read rows that come in base64; the arguments are those of `RowReader.begin`. */
export function rowsStart(
  leg: Leg,
  dtype: Dtype,
  layers: f64,
  topK: f64,
  rowBytes: f64,
  lead: i32,
  firstRow: f64,
  rows: f64,
  sentinels: bool,
): void {
  rowReader.begin(
    exchange.examination,
    leg,
    dtype,
    <u64>layers,
    <u64>topK,
    <u64>rowBytes,
    lead,
    <i64>firstRow,
    <i64>rows,
    sentinels,
  );
}

/** Reads the next `len` characters; returns why the rows can't be right. */
export function rowsPush(ptr: usize, len: usize): Reason {
  rowReader.push(ptr, len);
  return rowReader.reason;
}

export function rowsEnd(): Reason {
  return rowReader.end();
}
