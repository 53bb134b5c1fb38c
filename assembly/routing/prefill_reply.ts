// Reads prefill's reply: the prompt rows, where `kv_transfer_params` lies, and what the reply says of the prompt.
// The caller feeds windows of the body in order and fetches the rows itself, so that they are copied once.

import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';
import { ArrayClose, ArrayHead, CloseProgress, HeadProgress } from './array_head';
import { carriers, encodedLength } from './base64';
import { NpyHeader } from './npy';
import { Reason } from './reason';
import { PromptRows, RowChars, firstCarrier, rowCarriers } from './rows';

const enum Id {
  Root,
  Choices,
  Choice,
  RoutedExperts,
  KvTransferParams,
  Usage,
  PromptTokens,
  OtherFormat,
}

let paths: Paths | null = null;

function replyPaths(): Paths {
  let known = paths;
  if (known === null) {
    known = new Paths()
      .add('', Id.Root)
      .add('choices', Id.Choices)
      .add('choices.*', Id.Choice)
      .add('choices.*.routed_experts', Id.RoutedExperts)
      .add('choices.*.prompt_routed_experts', Id.OtherFormat)
      .add('prompt_routed_experts', Id.OtherFormat)
      .add('meta_info.routed_experts', Id.OtherFormat)
      .add('sglext.routed_experts', Id.OtherFormat)
      .add('kv_transfer_params', Id.KvTransferParams)
      .add('usage', Id.Usage)
      .add('usage.prompt_tokens', Id.PromptTokens);
    paths = known;
  }
  return known;
}

const enum Stage {
  Scan,
  Head,
  /** Waits for `takeRows`. */
  Rows,
  Close,
}


@final
export class PrefillReply {
  /** Why the rows can't be used; `None` also when there are none. */
  reason: Reason = Reason.None;
  /** False once the body is known not to be a JSON document. */
  json: bool = true;
  /** The value of `kv_transfer_params`, when it is an object: [kvStart, kvEnd) of the body. */
  kvStart: u64 = 0;
  kvEnd: u64 = 0;
  /** Tokens of the prompt as `usage` says, else as the rows do; -1 when neither is there. Known after `finish`. */
  promptTokens: i64 = -1;
  /** Where the rows lie, when `wantsRows`. */
  rowsAt: u64 = 0;
  rowsLen: u64 = 0;

  private scanner: Scanner = Scanner.take(replyPaths());
  private head: ArrayHead = new ArrayHead();
  private close: ArrayClose = new ArrayClose();
  private stage: Stage = Stage.Scan;
  private rows: PromptRows | null = null;
  private choicesSeen: i32 = 0;
  private choices: i32 = 0;
  private arraysInChoice: i32 = 0;
  private kvOpen: bool = false;

  /** `size`: bytes of the whole body. */
  constructor(private size: u64) {}

  /** Offset of the next byte that is wanted. */
  get offset(): u64 {
    return this.scanner.offset;
  }

  /** Whether the caller must fetch [rowsAt, rowsAt + rowsLen) of the body, call `takeRows` and then `resume`. */
  get wantsRows(): bool {
    return this.stage == Stage.Rows;
  }

  /** Reads a window that starts at `offset`, up to the rows or its end. False when the body is not JSON. */
  push(ptr: usize, len: usize): bool {
    this.scanner.feed(ptr, len);
    return this.scan();
  }

  /** Header of the array whose rows are wanted. */
  get header(): NpyHeader {
    return this.head.header;
  }

  /** The rows that were asked for; `chars` are taken over. `reason`: what a `RowsCheck` of them found. */
  takeRows(chars: RowChars, reason: Reason): void {
    const header = this.head.header;
    if (reason != Reason.None) this.refuse(reason);
    if (reason == Reason.Base64 || reason == Reason.Size) {
      // Where the string ends is for the scanner to find.
      chars.free();
      this.stage = Stage.Scan;
      return;
    }
    this.rows = new PromptRows(header, chars);
    // The first carrier may have been read with the header.
    const known = this.head.length - firstCarrier(header);
    this.scanner.skip(this.rowsLen - known);
    this.scanner.pass(this.scanner.skipping);
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    this.stage = Stage.Close;
  }

  /** Goes on with the window after `takeRows`. False when the body is not JSON. */
  resume(): bool {
    return this.scan();
  }

  /** After the last byte: false when the body is not a whole JSON object. Settles `reason`. */
  finish(): bool {
    if (!this.json || !this.scanner.done) return false;
    const rows = this.rows;
    if (this.reason == Reason.None && rows !== null) {
      if (this.promptTokens < 0) this.promptTokens = rows.rows;
      else if (<u64>this.promptTokens != rows.rows) this.reason = Reason.Prompt;
    }
    return true;
  }

  /** Hands the rows over when they are good; null when there are none or `reason` is set. */
  giveRows(): PromptRows | null {
    const rows = this.rows;
    if (this.reason != Reason.None) return null;
    this.rows = null;
    return rows;
  }

  /** Gives back what was not handed over. */
  free(): void {
    const rows = this.rows;
    if (rows !== null) rows.free();
    this.rows = null;
    this.scanner.free();
    this.head.free();
  }

  private scan(): bool {
    const scanner = this.scanner;
    while (true) {
      switch (this.stage) {
        case Stage.Head: {
          const progress = this.head.read(scanner);
          if (progress == HeadProgress.More) return true;
          this.stage = Stage.Scan;
          if (progress == HeadProgress.Bad) this.refuse(this.head.reason);
          else this.askForRows();
          break;
        }
        case Stage.Rows:
          return true;
        case Stage.Close: {
          const progress = this.close.read(scanner);
          if (progress == CloseProgress.More) return true;
          if (progress == CloseProgress.Bad) this.refuse(this.close.reason);
          this.stage = Stage.Scan;
          break;
        }
        default: {
          const event = scanner.next();
          if (event == Event.More) return true;
          if (event == Event.Failed) {
            this.json = false;
            return false;
          }
          if (event == Event.Value) {
            if (!this.onValue()) return false;
          }
          if (event == Event.ValueEnd) this.onValueEnd();
        }
      }
    }
  }

  /** False when the root is not an object. */
  private onValue(): bool {
    const scanner = this.scanner;
    const isNull = scanner.first == 0x6e;
    switch (scanner.id) {
      case Id.Root:
        this.json = scanner.first == 0x7b;
        break;
      case Id.Choices:
        if (++this.choicesSeen > 1) this.refuse(Reason.Duplicate);
        break;
      case Id.Choice:
        this.choices++;
        this.arraysInChoice = 0;
        break;
      case Id.RoutedExperts:
        if (++this.arraysInChoice > 1) this.refuse(Reason.Duplicate);
        if (isNull) break;
        if (this.choices > 1) this.refuse(Reason.Choices);
        else if (scanner.first != 0x22) this.refuse(Reason.Format);
        else if (this.reason == Reason.None) {
          scanner.enterString();
          this.head.begin(scanner);
          this.stage = Stage.Head;
        }
        break;
      case Id.OtherFormat:
        if (!isNull) this.refuse(Reason.Format);
        break;
      case Id.KvTransferParams:
        this.kvStart = this.kvEnd = scanner.offset;
        this.kvOpen = scanner.first == 0x7b;
        break;
      case Id.Usage:
        this.promptTokens = -1;
        break;
      default:
    }
    return this.json;
  }

  private onValueEnd(): void {
    const scanner = this.scanner;
    if (scanner.id == Id.KvTransferParams && this.kvOpen) this.kvEnd = scanner.offset;
    else if (scanner.id == Id.PromptTokens) this.promptTokens = scanner.integer;
  }

  private askForRows(): void {
    const header = this.head.header;
    if (header.rows == 0) return this.refuse(Reason.Prompt);
    this.rowsAt = this.head.start + firstCarrier(header);
    this.rowsLen = rowCarriers(header);
    if (this.rowsAt + this.rowsLen > this.size) return this.refuse(Reason.Size);
    this.stage = Stage.Rows;
  }

  private refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }
}
