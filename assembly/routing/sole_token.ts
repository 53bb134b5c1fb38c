// Puts prefill's rows into a response of SGLang's decode that has one generated token and no array.
//
// Prefill's first token comes with the KV. Where it is the only one, decode forwards nothing, and
// its answer has no array (SGLang 0.5.23, `process_batch_result_prebuilt` in
// sglang/srt/managers/scheduler_components/batch_result_processor.py). The rows of the prompt are
// then all rows that there are, and prefill has each of them. They are put in where an engine that
// does both legs writes its array:
//
//   /generate, each element of a list, each event   in `meta_info`, before `dp_rank`
//   chat with `return_meta_info`                    the same in the choice's `meta_info`
//   completions and chat                            in `sglext`, the reply's last member
//   events of these                                 an event with `sglext` and no choice, behind
//                                                   the choice's last event

import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { carriers, encodedLength } from './base64';
import { Site } from './formats/format';
import { NAMED, Name } from './named_array';
import { Place } from './places';
import { Prompt } from './prompt';
import { ReplyReader } from './reply_reader';
import { RowPlan } from './row_plan';

/**
 * An element or event of one token is not as long as this. Those that are pass without being held
 * to their end.
 */
const MAX_LENGTH: u64 = 1 << 20;
/** The members of an event before its choices are not as long as this. */
const MAX_HEAD: u64 = 4 << 10;
/** The longest finish reason that is looked at, with its quotes. */
const MAX_REASON: usize = 16;

/** The keys of arrays, by their names, up to the quote of the value. */
const KEYS: Ascii[] = [];
for (let name = 0; name < Name.Count; name++) KEYS.push(new Ascii('"' + NAMED[name].key + '":"'));
/** The padding of base64, and the quote behind it. */
const CLOSES: Ascii[] = [new Ascii('"'), new Ascii('="'), new Ascii('=="')];
const COMMA = new Ascii(',');
const SGLEXT = new Ascii('"sglext":{');
const BRACE = new Ascii('}');
const EVENT = new Ascii('"choices":[],"usage":null,"sglext":{');
/** What ends an event, and begins the next one up to the document that stood in its place. */
const NEXT_EVENT = new Ascii('}}\n\ndata: ');
// Finish reasons of a text that ended well. With others, such as `abort`, the engine broke off.
const ENDS: Ascii[] = [new Ascii('"length"'), new Ascii('"stop"'), new Ascii('"tool_calls"')];

/** Where a member can be written into an object of decode's that an engine writes it into. */
@final
class Slot {
  /** Offset in the body; 0 where there is no such object. */
  at: u64 = 0;
  /** Whether other members of the object stand before the offset, and behind it. */
  behind: bool = false;
  before: bool = false;
  /** Whether the value is an object. */
  private object: bool = false;

  forget(): void {
    this.at = 0;
  }

  /** The value begins at the scanner's cursor. */
  begin(site: Site): void {
    this.object = site.scanner.first == 0x7b;
    this.at = 0;
  }

  /** A member of the object begins, before which arrays are written. */
  beginMember(site: Site): void {
    if (!this.object || this.at != 0) return;
    this.at = site.base + site.scanner.keyStart;
    this.behind = false;
    this.before = true;
  }

  /** The value has ended. Without such a member, the place is behind its last one. */
  end(site: Site): void {
    if (!this.object || this.at != 0) return;
    this.at = site.position - 1;
    this.behind = site.scanner.count > 0;
    this.before = false;
  }

  /** The same for an object of which an array is the first member; it began at offset `from`. */
  endFirst(site: Site, from: u64): void {
    this.at = this.object ? from + 1 : 0;
    this.behind = false;
    this.before = site.scanner.count > 0;
  }
}


@final
export class SoleToken {
  /** Offset in the body from which on nothing may leave yet; -1: everything may leave. */
  heldFrom: i64 = -1;

  /** Offset of the document, or the element of a list, that is being read. */
  private start: u64 = 0;
  /** Whether its text has ended well. */
  private ended: bool = false;
  /** Where the value that is being read begins, of which the bytes are looked at. */
  private from: u64 = 0;
  private readonly meta: Slot = new Slot();
  private readonly ext: Slot = new Slot();

  /** Of a stream: how many tokens were generated so far, as told in `usage`; -1: it is not told. */
  private generated: i64 = -1;
  /** The members before `choices` of the choice's last event (owned), and their length. */
  private head: Block | null = null;
  private choicesAt: u64 = 0;
  /** Whether the stream has rows: decode's, or those that were put in. */
  private hasRows: bool = false;

  constructor(
    /** What prefill brought (borrowed). */
    private prompt: Prompt,
    /** Prompts in the request. */
    private prompts: i32,
  ) {}

  /** A document, or an element of a list, begins at the scanner's cursor. */
  begin(site: Site): void {
    this.start = site.position;
    this.ended = false;
    this.meta.forget();
    this.ext.forget();
    // In a stream of choices there is one array only.
    const possible = this.prompt.hasRaw && !this.hasRows;
    this.heldFrom = possible ? <i64>this.start : -1;
  }

  /** An array of decode's begins. */
  takeArray(site: Site): void {
    this.heldFrom = -1;
    this.hasRows = site.events && this.prompts == 1;
  }

  /** A piece has been read. */
  passPiece(site: Site): void {
    if (this.heldFrom >= 0 && site.position - this.start > MAX_LENGTH) this.heldFrom = -1;
  }

  /** A value begins at the scanner's cursor. */
  onValue(site: Site, place: Place): void {
    switch (place) {
      case Place.MetaRank:
      case Place.ChoiceMetaRank:
        return this.meta.beginMember(site);
      case Place.Meta:
        this.ended = false;
        return this.meta.begin(site);
      case Place.ChoiceMeta:
        return this.meta.begin(site);
      case Place.Choices:
        this.choicesAt = site.base + site.scanner.keyStart;
        return;
      case Place.Sglext:
        this.ext.begin(site);
        this.from = site.position;
        return;
      default:
        this.from = site.position;
    }
  }

  /** A value has ended. */
  onValueEnd(site: Site, place: Place): void {
    switch (place) {
      case Place.MetaFinish:
      case Place.FinishReason:
        this.ended = endsWell(site, this.from);
        return;
      case Place.Meta:
      case Place.ChoiceMeta:
        return this.meta.end(site);
      case Place.Sglext:
        return this.ext.endFirst(site, this.from);
      default:
    }
  }

  /**
   * The document or the element has ended, and its last byte is a closing brace. Puts the rows in
   * where it had one token and no array.
   */
  end(site: Site, reply: ReplyReader): void {
    if (this.heldFrom < 0) return;
    this.heldFrom = -1;
    const native = reply.has(Place.Meta);
    if (native == reply.has(Place.Choices)) return;
    if (hasArray(reply)) return;
    if (site.events && !native) return this.endEvent(site, reply);
    if (site.counts.completion != 1 || !this.ended) return;
    if (!native && (reply.choices != 1 || reply.list)) return;
    const part = reply.part;
    if (!this.isCovered(site, part)) return;
    const inMeta = native || reply.has(Place.ChoiceMeta);
    // The engine leaves an empty array out there, which Python takes for false.
    if (!inMeta && this.prompt.leading.taken == 0) return;
    const slot = inMeta ? this.meta : this.ext;
    if (slot.at != 0) return this.insert(site, part, slot.at, slot.behind, slot.before);
    if (inMeta || reply.has(Place.Sglext)) return;
    this.add(site, site.position - 1, COMMA);
    this.add(site, site.position - 1, SGLEXT);
    this.insert(site, part, site.position - 1, false, false);
    this.add(site, site.position - 1, BRACE);
  }

  /** `[DONE]` begins at offset `at` of the body: a stream of choices is over. */
  beforeDone(site: Site, at: u64): void {
    this.insertEvent(site, at);
  }

  free(): void {
    const head = this.head;
    if (head !== null) head.free();
    this.head = null;
  }

  /** An event of completions or chat has ended. */
  private endEvent(site: Site, reply: ReplyReader): void {
    const generated = site.counts.completion;
    if (generated >= 0) this.generated = generated;
    if (reply.choices == 0) {
      if (!reply.has(Place.Sglext)) return this.insertEvent(site, this.start);
      const ext = this.ext;
      const sole = this.head !== null && ext.at != 0 && this.isSole(site);
      if (!sole || !this.isCovered(site, -1)) return;
      this.insert(site, -1, ext.at, ext.behind, ext.before);
      this.hasRows = true;
      return;
    }
    const len = this.choicesAt - this.start;
    if (!this.ended || reply.choices != 1 || len > MAX_HEAD) return;
    const head = Block.alloc(<usize>len);
    this.free();
    this.head = head;
    if (!site.rope.read(this.start, len, head.ptr)) this.free();
  }

  /** Whether a stream of choices has one token. */
  private isSole(site: Site): bool {
    return this.generated >= 0 ? this.generated == 1 : site.maxTokens == 1;
  }

  /**
   * Writes an event with the rows before the document at offset `at`, if the text has ended with
   * its first token.
   */
  private insertEvent(site: Site, at: u64): void {
    const head = this.head;
    if (head === null || this.hasRows || !this.isSole(site)) return;
    if (!this.isCovered(site, -1)) return;
    this.hasRows = true;
    site.rope.replaceOwned(at, 0, head, head.len);
    site.growth += head.len;
    this.head = null;
    this.add(site, at, EVENT);
    this.insert(site, -1, at, false, false);
    this.add(site, at, NEXT_EVENT);
  }

  /**
   * Whether prefill has brought arrays for the response, or for this part of it, and each has a row
   * for each token of the prompt and nothing else.
   */
  private isCovered(site: Site, part: i32): bool {
    const leading = this.prompt.leading;
    const several = leading.plans.length > 1;
    if (!leading.came || site.counts.differ || (several ? part < 0 : this.prompts > 1)) return false;
    for (let name = 0; name < Name.Count; name++) {
      const array = this.prompt.array(<Name>name);
      if (array.came && !isWhole(site, array.planOf(max(part, 0)))) return false;
    }
    return true;
  }

  /** Writes the members at offset `at`, between members of their object. See `isCovered`. */
  private insert(site: Site, part: i32, at: u64, behind: bool, before: bool): void {
    for (let name = 0; name < Name.Count; name++) {
      const plan = this.prompt.array(<Name>name).planOf(max(part, 0));
      if (plan === null) continue;
      if (behind) this.add(site, at, COMMA);
      this.insertArray(site, KEYS[name], plan, at);
      if (before) this.add(site, at, COMMA);
      else behind = true;
      site.begun[name]++;
    }
    site.edited();
    site.refuse(site.examination.judge());
  }

  private insertArray(site: Site, key: Ascii, plan: RowPlan, at: u64): void {
    const rows = plan.rows;
    const chars = rows.at(0)!;
    this.add(site, at, key);
    site.rope.replaceFrom(at, 0, chars, 0, chars.length);
    site.growth += chars.length;
    this.add(site, at, CLOSES[<i32>(encodedLength(rows.bytes) - chars.length)]);
  }

  private add(site: Site, at: u64, text: Ascii): void {
    site.rope.replace(at, 0, text.ptr, text.len);
    site.growth += text.len;
  }
}

/** Whether the document, or the element of a list, has an array. */
function hasArray(reply: ReplyReader): bool {
  for (let place: i32 = Place.Raw; place < Place.Count; place++) if (reply.has(<Place>place)) return true;
  return false;
}

/** Whether a plan has a row of prefill's for each token of the prompt, and prefill no others. */
function isWhole(site: Site, plan: RowPlan | null): bool {
  if (plan === null || plan.seam != plan.promptEnd) return false;
  const tokens = site.counts.prompt;
  if (tokens >= 0 && <u64>tokens != plan.promptEnd) return false;
  const rows = plan.rows;
  const chars = rows.at(0);
  if (chars === null || rows.start != plan.start || rows.end != plan.promptEnd) return false;
  return chars.length == carriers(rows.bytes);
}

/** Whether the value from offset `from` on, which has just ended, is a reason in `ENDS`. */
function endsWell(site: Site, from: u64): bool {
  const len = <usize>(site.position - from);
  if (len > MAX_REASON || !site.rope.read(from, len, REASON)) return false;
  for (let i = 0; i < ENDS.length; i++) if (ENDS[i].equals(REASON, len)) return true;
  return false;
}

const REASON = memory.data(16);
