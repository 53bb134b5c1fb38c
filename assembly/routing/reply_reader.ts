// The walk through a reply. Prefill's reply and decode's response have the same shape, so one
// reader keeps track of where in it the walk is: which element of a list, which choice, which
// members have come before, and what the counts of tokens say. Its two consumers, `PrefillReply`
// and `DecodeResponse`, ask for one notice after the other, as a `Scanner` is asked for events, and
// decide what becomes of an array or a value.

import { Event, Scanner } from '../json/scanner';
import { Counts } from './counts';
import { Name } from './named_array';
import { Place, isRaw } from './places';
import { Kind } from './prompt';

/** What `next` stopped for. Where a value begins, its first byte is at the scanner's cursor. */
export const enum Notice {
  /** The scanner's window is used up. */
  More,
  /** The document is not JSON, or not of a reply's shape. */
  Broken,
  /** The document is an object, or a list: see `list`. */
  Root,
  RootEnd,
  /** An element of a list; `counts` are its own from here on. */
  Element,
  ElementEnd,
  /** A second `choices`: nobody can tell which one a client reads. */
  SecondChoices,
  Choice,
  ChoiceEnd,
  /** An array at `place`; `again`: its choice or element has had one of this name before. */
  Array,
  ArrayEnd,
  /** A member of an array that is an object, at `place`: `data`, `shape` and so on. */
  Member,
  MemberEnd,
  /** A row, a layer or an expert, at `place`, of nested lists. Told only if `announcesLists`. */
  Listed,
  ListedEnd,
  /** A value of `kind`, which prefill knows better; `again`: it is not the first one there. */
  Value,
  ValueEnd,
  /** `choices`, an object of SGLang's, or a value that a consumer looks at, at `place`. */
  Other,
  /** The same, or a number or list of which only the end counts, has ended, at `place`. */
  OtherEnd,
  /** The document has ended. Told once. */
  DocumentEnd,
  /** Never returned by `next`: the reader goes on by itself. */
  None,
}


@final
export class ReplyReader {
  /** Counts of tokens in the reply, or in the element of a list that is being read. */
  readonly counts: Counts = new Counts();
  /** Whether the reply is a list of elements, as SGLang's is for several prompts. */
  list: bool = false;
  /** Index of the element that is being read; -1 before the first one, and without a list. */
  element: i32 = -1;
  /** The `index` that an event has told for its prompt; -1: it has told none. */
  index: i64 = -1;
  /** Choices of the document that have begun. */
  choices: i32 = 0;
  /** Whether the choice that is being read is an object. */
  choiceIsObject: bool = false;
  /** Whether rows, layers and experts of nested lists are announced; there may be millions. */
  announcesLists: bool = false;

  /** What the last notice was about. */
  place: Place = Place.Root;
  kind: Kind = Kind.Count;
  again: bool = false;

  /**
   * Places at which a value has begun: bit p is set for the place p. Those of a choice or an
   * element are of the one that is being read.
   */
  private seen: u64 = 0;

  /** `scanner` (borrowed) watches the paths of `places.ts`. */
  constructor(private scanner: Scanner) {}

  /** Reads on to what a consumer has to know. */
  next(): Notice {
    const scanner = this.scanner;
    while (true) {
      const event = scanner.next();
      if (event == Event.More) return Notice.More;
      if (event == Event.Failed) return Notice.Broken;
      if (event == Event.Done) return Notice.DocumentEnd;
      const place = <Place>scanner.id;
      if (isListed(place)) {
        if (!this.announcesLists) continue;
        this.place = place;
        return event == Event.Value ? Notice.Listed : Notice.ListedEnd;
      }
      this.place = place;
      const notice = event == Event.Value ? this.enter(place) : this.leave(place);
      if (notice != Notice.None) return notice;
    }
  }

  /** Another document follows, as in a stream of events: what was counted is forgotten. */
  beginDocument(): void {
    this.scanner.reset();
    this.element = -1;
    this.index = -1;
    this.choices = 0;
    this.seen = 0;
    this.counts.reset();
  }

  /**
   * Which of several prompts the element, or the event, is of; -1: it does not tell, or not by a
   * number that a prompt has.
   */
  get part(): i32 {
    if (this.list) return this.element;
    return this.index >= 0 && this.index <= i32.MAX_VALUE ? <i32>this.index : -1;
  }

  /** Whether the value at `place` is a member of a choice. */
  get inChoice(): bool {
    return (bitOf(this.place) & IN_CHOICE) != 0;
  }

  /** Whether the document, or the choice that is being read, has had a value at a place. */
  has(place: Place): bool {
    return (this.seen & bitOf(place)) != 0;
  }

  /** A watched value begins. */
  private enter(place: Place): Notice {
    this.again = this.has(place);
    this.seen |= bitOf(place);
    switch (place) {
      case Place.Root: {
        const first = this.scanner.first;
        this.list = first == 0x5b;
        return this.list || first == 0x7b ? Notice.Root : Notice.Broken;
      }
      case Place.Element:
        this.element++;
        this.seen &= ~IN_ELEMENT;
        this.counts.reset();
        return Notice.Element;
      case Place.ElementChoices:
        // No engine answers with a list of replies that have choices.
        return Notice.Broken;
      case Place.Choices:
        return this.again ? Notice.SecondChoices : Notice.Other;
      case Place.Choice:
        this.choices++;
        this.choiceIsObject = this.scanner.first == 0x7b;
        this.seen &= ~IN_CHOICE;
        return Notice.Choice;
      case Place.Array:
        return Notice.Array;
      case Place.Usage:
        this.counts.beginUsage();
        return Notice.None;
      case Place.Meta:
        this.counts.beginMeta();
        return Notice.Other;
      case Place.KvTransferParams:
      case Place.FinishReason:
      case Place.MetaFinish:
      case Place.MetaRank:
      case Place.Sglext:
      case Place.ChoiceMeta:
      case Place.ChoiceMetaRank:
        return Notice.Other;
      default:
        if (isRaw(place)) return Notice.Array;
        return isMember(place) ? Notice.Member : this.takeKind(place) ? Notice.Value : Notice.None;
    }
  }

  /** A watched value has ended. */
  private leave(place: Place): Notice {
    switch (place) {
      case Place.Root:
        return Notice.RootEnd;
      case Place.Element:
        return Notice.ElementEnd;
      case Place.Choice:
        return Notice.ChoiceEnd;
      case Place.Array:
        return Notice.ArrayEnd;
      case Place.PromptTokens:
      case Place.CompletionTokens:
      case Place.MetaPromptTokens:
      case Place.MetaCompletionTokens:
        this.counts.tell(place, this.scanner.integer);
        return Notice.None;
      case Place.Index:
        this.index = this.scanner.integer;
        return Notice.None;
      case Place.KvTransferParams:
      case Place.FinishReason:
      case Place.Meta:
      case Place.MetaFinish:
      case Place.Sglext:
      case Place.ChoiceMeta:
      case Place.TokenIds:
      case Place.ChoiceIndex:
      case Place.MetaCachedTokens:
        return Notice.OtherEnd;
      default:
        if (isRaw(place)) return Notice.ArrayEnd;
        return isMember(place) ? Notice.MemberEnd : this.takeKind(place) ? Notice.ValueEnd : Notice.None;
    }
  }

  /** Keeps the kind of the value at a place. False where it is of no kind. */
  private takeKind(place: Place): bool {
    const kind = kindAt(place);
    this.kind = kind;
    return kind != Kind.Count;
  }
}

/** The bit of a place in a set of places. */
// @ts-ignore: decorator
@inline
function bitOf(place: Place): u64 {
  return (<u64>1) << place;
}

/** The places of arrays of every name, of which the first one is at `first`. */
// @ts-ignore: decorator
@inline
function everyName(first: Place): u64 {
  return (((<u64>1) << Name.Count) - 1) << first;
}

/** Places of an element's members, and of members of its `meta_info`. */
const IN_ELEMENT: u64 =
  ((<u64>1) << Place.Meta) |
  everyName(Place.Raw) |
  ((<u64>1) << Place.MetaFinish) |
  ((<u64>1) << Place.MetaRank);

/** Places of a choice's members. */
const IN_CHOICE: u64 =
  ((<u64>1) << Place.Array) |
  everyName(Place.ChoiceRaw) |
  ((<u64>1) << Place.ChoicePromptExperts) |
  ((<u64>1) << Place.ChoicePromptLogprobs);

/** Whether the place is inside of nested lists. */
// @ts-ignore: decorator
@inline
function isListed(place: Place): bool {
  return place >= Place.Row && place <= Place.Expert;
}

/** Whether the place is a member of an object with rows. */
// @ts-ignore: decorator
@inline
function isMember(place: Place): bool {
  return place >= Place.Data && place <= Place.Dtype;
}

/** The kind of the value at a place; `Kind.Count` where it has no kind. */
function kindAt(place: Place): Kind {
  switch (place) {
    case Place.PromptExperts:
    case Place.ChoicePromptExperts:
      return Kind.PromptExperts;
    case Place.PromptLogprobs:
    case Place.ChoicePromptLogprobs:
      return Kind.PromptLogprobs;
    case Place.TokensDetails:
      return Kind.TokensDetails;
    case Place.CachedTokens:
      return Kind.CachedTokens;
    default:
      return Kind.Count;
  }
}
