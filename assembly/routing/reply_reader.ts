// The walk through a reply. Prefill's reply and decode's response have the same shape, so one reader
// keeps track of where in it the walk is: which element of a list, which choice, which members have
// come before, and what the counts of tokens say. The two consumers, `PrefillReply` and
// `DecodeResponse`, extend the reader and say what becomes of an array or a value that it announces.

import { Event, Scanner } from '../json/scanner';
import { Counts } from './counts';
import { Place } from './places';
import { Kind } from './prompt';

export abstract class ReplyReader {
  /** Whether the reply is a list of elements, as SGLang's is for several prompts. */
  list: bool = false;
  /** Index of the element that is being read; -1 before the first one, and where there is no list. */
  element: i32 = -1;
  /** Choices of the document that have begun. */
  choiceCount: i32 = 0;
  /** Whether an array reads characters of its own: `readArray` is then called instead of the scanner. */
  inArray: bool = false;

  /** How many members of each name have come, of the document, the element and the choice. */
  private choicesMembers: i32 = 0;
  private arraysInElement: i32 = 0;
  private arraysInChoice: i32 = 0;
  private rawInChoice: i32 = 0;
  /** Kinds of values that the document, and the choice, have had: bit k is set for the kind k. */
  private kindsInDocument: i32 = 0;
  private kindsInChoice: i32 = 0;

  /** `scanner` watches the paths of `places.ts`; `freeScanner` gives it back. */
  constructor(
    protected readonly scanner: Scanner,
    /** Counts of tokens in the reply, or in the element of a list that is being read. */
    readonly counts: Counts,
  ) {}

  /** Whether the document, or the choice that is being read, has had a value of this kind. */
  has(kind: Kind, inChoice: bool): bool {
    return ((inChoice ? this.kindsInChoice : this.kindsInDocument) & (1 << (<i32>kind))) != 0;
  }

  // ---- what a consumer says; a call is made once for a value, never for a byte

  /** Whether nothing more is to be read of what the scanner has. */
  protected abstract get stopped(): bool;

  /** Lets the array read on. False when it has used up the scanner's window. */
  protected abstract readArray(): bool;

  /** The document is not JSON, or not of a reply's shape. */
  protected abstract onBroken(): void;

  /** A second `choices` begins: nobody can tell which one a client reads. */
  protected abstract onSecondChoices(): void;

  /** The document is an object or a list, see `list`. */
  protected onRoot(): void {}
  protected onRootEnd(): void {}

  /** An element of a list begins or has ended; `counts` are its own. */
  protected onElement(): void {}
  protected onElementEnd(): void {}

  protected onChoice(): void {}
  protected onChoiceEnd(): void {}

  /** A value of `routed_experts` begins; `again`: the choice or the element has had one before. */
  protected abstract onArray(place: Place, again: bool): void;
  protected onArrayEnd(): void {}

  /** A member (`data`, `shape` and so on) of an array that is an object begins or has ended. */
  protected abstract onMember(place: Place): void;
  protected abstract onMemberEnd(place: Place): void;

  /** A row, a layer or an expert of an array that is nested lists begins or has ended. */
  protected onListed(place: Place): void {}
  protected onListedEnd(place: Place): void {}

  /** A value that prefill knows better than decode begins; `again`: as `has` said before it. */
  protected abstract onValue(kind: Kind, inChoice: bool, again: bool): void;
  protected abstract onValueEnd(kind: Kind): void;

  /** A watched value begins, or has ended, of which the reader itself keeps nothing. */
  protected onOther(place: Place): void {}
  protected onOtherEnd(place: Place): void {}

  protected onDocumentEnd(): void {}

  // ---- the walk

  /** Reads what the scanner was fed, until that is used up or the consumer has stopped. */
  protected walk(): void {
    const scanner = this.scanner;
    while (!this.stopped) {
      if (this.inArray) {
        if (!this.readArray()) return;
        continue;
      }
      const event = scanner.next();
      if (event == Event.More) return;
      if (event == Event.Value) this.enter(<Place>scanner.id);
      else if (event == Event.ValueEnd) this.leave(<Place>scanner.id);
      else if (event == Event.Failed) this.onBroken();
      else this.onDocumentEnd();
    }
  }

  /** Another document follows, as in a stream of events: what was counted is forgotten. */
  protected beginDocument(): void {
    this.scanner.reset();
    this.element = -1;
    this.choiceCount = 0;
    this.choicesMembers = this.arraysInElement = 0;
    this.kindsInDocument = 0;
    this.counts.reset();
  }

  protected freeScanner(): void {
    this.scanner.free();
  }

  /** A watched value begins. */
  private enter(place: Place): void {
    switch (place) {
      case Place.Root:
      case Place.Element:
      case Place.ElementChoices:
      case Place.Choices:
      case Place.Choice:
        return this.enterContainer(place);
      case Place.Array:
        return this.onArray(place, ++this.arraysInChoice > 1);
      case Place.Raw:
        return this.onArray(place, ++this.arraysInElement > 1);
      case Place.ChoiceRaw:
        return this.onArray(place, ++this.rawInChoice > 1);
      case Place.Row:
      case Place.Layer:
      case Place.Expert:
        return this.onListed(place);
      case Place.Data:
      case Place.Shape:
      case Place.Dimension:
      case Place.Start:
      case Place.Dtype:
        return this.onMember(place);
      case Place.Usage:
        return this.counts.usage.reset();
      case Place.Meta:
        return this.counts.meta.reset();
      default: {
        const kind = kindAt(place);
        if (kind == Kind.Count) this.onOther(place);
        else this.enterValue(kind, isInChoice(place));
      }
    }
  }

  private enterContainer(place: Place): void {
    const first = this.scanner.first;
    switch (place) {
      case Place.Root:
        this.list = first == 0x5b;
        if (!this.list && first != 0x7b) this.onBroken();
        else this.onRoot();
        break;
      case Place.Element:
        this.element++;
        this.arraysInElement = 0;
        this.counts.reset();
        this.onElement();
        break;
      case Place.Choices:
        if (++this.choicesMembers > 1) this.onSecondChoices();
        break;
      case Place.Choice:
        this.choiceCount++;
        this.arraysInChoice = this.rawInChoice = this.kindsInChoice = 0;
        this.onChoice();
        break;
      default:
        // `choices` of an element: no engine answers with a list of such replies.
        this.onBroken();
    }
  }

  private enterValue(kind: Kind, inChoice: bool): void {
    const again = this.has(kind, inChoice);
    const bit = 1 << (<i32>kind);
    if (inChoice) this.kindsInChoice |= bit;
    else this.kindsInDocument |= bit;
    this.onValue(kind, inChoice, again);
  }

  /** A watched value has ended. */
  private leave(place: Place): void {
    const scanner = this.scanner;
    switch (place) {
      case Place.Root:
        return this.onRootEnd();
      case Place.Element:
        return this.onElementEnd();
      case Place.Choice:
        return this.onChoiceEnd();
      case Place.Array:
      case Place.Raw:
      case Place.ChoiceRaw:
        return this.onArrayEnd();
      case Place.Row:
      case Place.Layer:
      case Place.Expert:
        return this.onListedEnd(place);
      case Place.Data:
      case Place.Shape:
      case Place.Dimension:
      case Place.Start:
      case Place.Dtype:
        return this.onMemberEnd(place);
      case Place.PromptTokens:
        this.counts.usage.prompt = scanner.integer;
        break;
      case Place.CompletionTokens:
        this.counts.usage.completion = scanner.integer;
        break;
      case Place.MetaPromptTokens:
        this.counts.meta.prompt = scanner.integer;
        break;
      case Place.MetaCompletionTokens:
        this.counts.meta.completion = scanner.integer;
        break;
      default: {
        const kind = kindAt(place);
        if (kind == Kind.Count) this.onOtherEnd(place);
        else this.onValueEnd(kind);
      }
    }
  }
}

/** The kind of the value at a place; `Kind.Count` where it is none. */
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

function isInChoice(place: Place): bool {
  return place == Place.ChoicePromptExperts || place == Place.ChoicePromptLogprobs;
}
