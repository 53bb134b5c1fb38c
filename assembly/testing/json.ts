// JSON: the scanner, one document after another over the paths that the test has added.

import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';
import { plainEnd as findPlainEnd } from '../json/strings';

/** What the scanners that are made next watch. */
let paths = new Paths();
let scanner: Scanner | null = null;

export function clearPaths(): void {
  paths = new Paths();
}

/** Watches the values at the path in the `len` bytes at `ptr`. */
export function addPath(ptr: usize, len: usize, id: i32): void {
  paths.add(String.UTF8.decodeUnsafe(ptr, len), id);
}

/** Takes a new scanner for a document; the one before is given back. */
export function scannerStart(): void {
  scannerFree();
  scanner = new Scanner(paths);
}

export function scannerFree(): void {
  const old = scanner;
  if (old !== null) old.free();
  scanner = null;
}

export function scannerReset(): void {
  scanner!.reset();
}

export function scannerFeed(ptr: usize, len: usize): void {
  scanner!.feed(ptr, len);
}

/** Returns an `Event`. */
export function scannerNext(): i32 {
  return scanner!.next();
}

export function scannerId(): i32 {
  return scanner!.id;
}

export function scannerOffset(): f64 {
  return <f64>scanner!.offset;
}

export function scannerKeyStart(): f64 {
  return <f64>scanner!.keyStart;
}

export function scannerComma(): f64 {
  return <f64>scanner!.comma;
}

export function scannerIndex(): i32 {
  return scanner!.index;
}

export function scannerCount(): i32 {
  return scanner!.count;
}

export function scannerInteger(): i64 {
  return scanner!.integer;
}

export function scannerFirst(): i32 {
  return scanner!.first;
}

export function scannerComplete(): bool {
  return scanner!.complete;
}

export function scannerDone(): bool {
  return scanner!.done;
}

export function scannerTooDeep(): bool {
  return scanner!.tooDeep;
}

/** Whether the `len` bytes at `ptr`, read in one window, are a whole document of JSON. */
export function accepts(ptr: usize, len: usize): bool {
  const scanner = new Scanner(paths);
  scanner.feed(ptr, len);
  let event = scanner.next();
  while (event != Event.More && event != Event.Failed) event = scanner.next();
  const whole = event == Event.More && scanner.complete;
  scanner.free();
  return whole;
}

export function plainEnd(ptr: usize, end: usize): usize {
  return findPlainEnd(ptr, end);
}
