// Whether a chat has anything but text. Of images, audio and video vLLM counts the tokens only
// after it has compared the prompt with the length of the model (`_tokenize_singleton_prompt` in
// vllm/renderers/base.py), so the tokens that it reports do not show what it refuses.

import { Ascii } from '../bytes/ascii';
import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';

const enum Part {
  Whole,
  Type,
}

const TEXT = new Ascii('"text"');

let paths: Paths | null = null;

function partPaths(): Paths {
  let known = paths;
  if (known === null) {
    known = new Paths().add('messages.*.content.*', Part.Whole).add('messages.*.content.*.type', Part.Type);
    paths = known;
  }
  return known;
}

/** Whether the parts of all messages are text, by their types. The request is borrowed. */
export function isText(ptr: usize, len: usize): bool {
  const scanner = Scanner.take(partPaths());
  scanner.feed(ptr, len);
  let start: u64 = 0;
  // Whether the part that is being read has said that it is text.
  let text = true;
  let all = true;
  let event = scanner.next();
  while (all && event != Event.Failed && event != Event.More) {
    if (event == Event.Value) {
      start = scanner.offset;
      if (scanner.id == Part.Whole) text = scanner.first == 0x22;
    } else if (event == Event.ValueEnd) {
      if (scanner.id == Part.Type) text = TEXT.equals(ptr + <usize>start, <usize>(scanner.offset - start));
      else all = text;
    }
    event = scanner.next();
  }
  all = all && scanner.done;
  scanner.free();
  return all;
}
