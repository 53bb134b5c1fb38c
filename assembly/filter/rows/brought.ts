// What an exchange knows when decode's response comes: what prefill brought, what the client asked
// for, and what the rows of both legs show.

import { Block } from '../../bytes/block';
import { RequestBody } from '../../connectors/request_body';
import { Alone, DecodeResponse, Expected } from '../../routing/decode_response';
import { Examination, Leg } from '../../routing/examination';
import { NAMED, Name } from '../../routing/named_array';
import { Format } from '../../routing/prompt';
import { Reason, reasonText } from '../../routing/reason';
import { Auditor, Candidate } from '../audit/auditor';
import { Config } from '../config/config';
import { DecodeCache } from '../outcome/decode_cache';
import { ClientRequest } from '../request/client_request';
import { Captured } from './capture';
import { Kept } from './room';


@final
export class Brought {
  /**
   * What prefill's reply brought (owned). It is empty before the reply, and without a prefill leg.
   */
  readonly captured: Captured = new Captured();
  /** What a reader of decode's response needs to know. It borrows from this object. */
  readonly expected: Expected = new Expected();
  /** What the rows of both legs show (owned). */
  readonly examination: Examination;
  private readonly kept: Kept = new Kept();
  /** The exchange, if it has been chosen to be audited (owned). */
  private candidate: Candidate | null = null;

  constructor(private readonly config: Config) {
    this.examination = new Examination(config.rowCheck, config.model);
    this.expected.examination = this.examination;
    this.captured.prompt.lastRowOfDecode = config.lastRowOfDecode;
    this.captured.prompt.decodeForwardsLast = config.connector.decodeForwardsLast;
  }

  /** The exchange may be chosen to be audited. `body` is the client's (borrowed). */
  nominate(auditor: Auditor | null, client: ClientRequest, asked: RequestBody, body: Block): void {
    if (auditor !== null) this.candidate = auditor.choose(client, asked, body);
  }

  /** The response has been merged, and has left: an audit takes the rows, if there is one. */
  audit(): void {
    const candidate = this.candidate;
    if (candidate === null) return;
    this.candidate = null;
    candidate.audit(this.captured.prompt);
  }

  /** Prefill's reply has been read. From now on its bytes count against what the VM may keep. */
  count(): void {
    this.kept.count(this.captured.prompt);
  }

  /** Decode's leg of `request` is sent: notes what to expect of the response. */
  expectDecode(request: RequestBody): void {
    const expected = this.expected;
    expected.prompt = this.captured.prompt;
    expected.tail = this.config.tail;
    expected.maxTokens = request.maxTokens;
    for (let name = 0; name < Name.Count; name++) expected.asked[name] = request.asksFor(<Name>name);
    this.expectChoices(request);
  }

  /**
   * Decode serves `request` alone: notes what to expect of the response. Prefill's rows are of no
   * use then, and are given back.
   */
  expectAlone(request: RequestBody, alone: Alone): void {
    this.expected.alone = alone;
    this.expectChoices(request);
    this.forgetRows();
    this.forgetCandidate();
  }

  private expectChoices(request: RequestBody): void {
    this.expected.prompts = max(request.batch, 1);
    this.expected.choices = request.choices;
  }

  /**
   * Whether edits that are still to come may change the length of decode's body, once its first
   * array is known. Arrays that become `null` are not considered here.
   */
  get mayGrow(): bool {
    const prompt = this.expected.prompt;
    // An array in the object format says itself whether it has only generated rows, whatever decode
    // was asked for.
    const tails = this.joins || prompt.format == Format.Object;
    // Of several arrays each may be widened to another dtype, whether or not the first one was.
    // A later element of a list may have a single token and no array, and then gets prefill's rows.
    const fills = prompt.hasRaw && this.expected.prompts > 1;
    const grows = tails || fills || prompt.mayWiden;
    return prompt.values.length > 0 || (grows && this.expected.choices != 1);
  }

  /**
   * The same before any of decode's response is known: its first array may change the length, too,
   * and so do rows that are put in where it has none.
   */
  get mayGrowFromTheStart(): bool {
    const prompt = this.expected.prompt;
    return this.mayGrow || this.joins || prompt.mayWiden || prompt.hasRaw;
  }

  /** Whether decode was asked to begin behind row 0, so that arrays may not have their length. */
  private get joins(): bool {
    return this.expected.tail || this.expected.prompt.start > 0;
  }

  /**
   * What decode has told of its cache in `response`, which has been read to its end; null where it
   * served the request alone.
   */
  decodeCache(response: DecodeResponse): DecodeCache | null {
    const expected = this.expected;
    if (expected.alone !== null) return null;
    const own = this.config.connector.countsCached && !expected.prompt.tellsCached;
    return DecodeCache.of(own ? response.cachedTokens : -1, expected.prompt.tokens);
  }

  /**
   * Whether `response` failed with a `reason` that only says that it is not JSON, where that does
   * no harm: decode has served the request alone, and no array had begun in what was read. No
   * client finds an array in such a response either.
   */
  isForeign(response: DecodeResponse, reason: Reason): bool {
    return reason == Reason.Json && this.expected.alone !== null && !response.hasRouting;
  }

  /** Says in words what is wrong. For rows that no router gives it also says where they are. */
  describe(reason: Reason, response: DecodeResponse | null = null): string {
    const text = reasonText(reason);
    if (reason == Reason.Missing && response !== null && response.lacking != Name.RoutedExperts)
      return text + ' (' + NAMED[response.lacking].key + ')';
    return reason == Reason.Experts ? text + ' (' + this.examination.describe() + ')' : text;
  }

  /** Gives back what prefill brought. */
  forgetRows(): void {
    this.captured.free();
    this.kept.forget();
    this.examination.forget(Leg.Prefill);
  }

  private forgetCandidate(): void {
    const candidate = this.candidate;
    if (candidate !== null) candidate.free();
    this.candidate = null;
  }

  /** Gives back everything. It may be called again. */
  free(): void {
    this.forgetRows();
    this.forgetCandidate();
    this.examination.free();
  }
}
