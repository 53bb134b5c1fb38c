// Where the runtime ends up when an assertion fails: logs the file and the line, then traps.
// Allocates nothing, because the heap may be what has failed.

import { proxy_log } from '@gcoredev/proxy-wasm-sdk-as/assembly/imports';
import { writeDecimal } from '../bytes/ascii';
import { LogLevel } from './types';

const LINE_BYTES: usize = 512;
const line: usize = memory.data(512);

/**
 * Writes a text from `at` up to `limit`, each UTF-16 unit outside ASCII as `?`; returns where it
 * ends.
 */
function put(text: string | null, at: usize, limit: usize): usize {
  if (text === null) return at;
  for (let i = 0; i < text.length && at < limit; i++) {
    const unit = load<u16>(changetype<usize>(text) + ((<usize>i) << 1));
    store<u8>(at++, unit < 0x80 ? <u8>unit : 0x3f);
  }
  return at;
}

/**
 * The compiler calls this in place of its own `abort` (`use` in asconfig.json). Does not return.
 */
export function abort(message: string | null, file: string | null, lineNumber: u32, column: u32): void {
  const limit = line + LINE_BYTES - 48;
  let at = put('abort: ', line, limit);
  at = put(message, at, limit);
  at = put(' at ', at, limit);
  at = put(file, at, limit);
  store<u8>(at++, 0x3a);
  at += writeDecimal(lineNumber, at);
  store<u8>(at++, 0x3a);
  at += writeDecimal(column, at);
  proxy_log(LogLevel.Critical, line, at - line);
  unreachable();
}
