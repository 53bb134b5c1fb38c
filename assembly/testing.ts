// What Node calls to test the modules that need no host. One object of each kind at a time, kept in a global, so that the
// caller holds no references; its bytes lie in memory from `alloc`. Offsets are f64: exact, and not BigInt in Node.

import { allocate, deallocate, vmBytes as bytesOfVm } from './bytes/arena';
import { Ascii } from './bytes/ascii';
import { heldBytes as held, Block } from './bytes/block';
import { Rope, Sink } from './bytes/rope';
import { Connector, decodeLeg, prefillLeg, withoutClientParams } from './connectors/connector';
import { connectorNamed } from './connectors/table';
import { Ranks } from './connectors/ranks';
import { Api, RequestBody, Unfit } from './connectors/request_body';
import { Rewrite } from './connectors/rewrite';
import { RANDOM_BYTES, Session } from './connectors/session';
import { ENDPOINT_BYTES, Endpoint, Endpoints } from './filter/config/endpoints';
import { Paths } from './json/paths';
import { Event, Scanner } from './json/scanner';
import { plainEnd as findPlainEnd } from './json/strings';
import { Examination, Leg, Model, RowCheck } from './routing/examination';
import { DecodeResponse, Expected, Form, Treatment } from './routing/decode_response';
import { EventStream } from './routing/event_stream';
import { Dtype, NpyHeader, PREFIX_BYTES, readHeader, readPrefix, writeHeader } from './routing/npy';
import { Examination, Leg, Model, RowCheck } from './routing/examination';
import { PrefillReply } from './routing/prefill_reply';
import { Reason } from './routing/reason';
import { alphabetEnd } from './routing/base64';
import { PromptCheck } from './routing/formats/prompt_value';
import { Format, Kind, PrefillValue, Prompt } from './routing/prompt';
import { RowReader } from './routing/row_reader';
import { HeldChars, ParkedChars, Parking, RowChars } from './routing/rows';

export {
  carriers,
  decode as base64Decode,
  decodeRow,
  encode as base64Encode,
  encodedLength,
  inAlphabet,
  joined,
  leadOf,
  mix,
  shiftLeft,
  charOf,
  valueOf,
} from './routing/base64';

// ---- memory

export function alloc(len: usize): usize {
  return heap.alloc(max<usize>(len, 1));
}

export function free(ptr: usize): void {
  heap.free(ptr);
}

/** Bytes in live blocks: 0 when nothing leaks. */
export function heldBytes(): f64 {
  return <f64>held();
}

export function arenaAlloc(len: usize): usize {
  return allocate(len);
}

export function arenaFree(ptr: usize): void {
  deallocate(ptr);
}

export function vmBytes(): f64 {
  return <f64>bytesOfVm();
}

/** Takes up part of the VM's budget, to see what happens when memory is short. */
let ballast: Block | null = null;

export function holdBallast(len: usize): void {
  ballast = Block.adopt(0, len);
}

export function dropBallast(): void {
  const block = ballast;
  if (block !== null) block.free();
  ballast = null;
}

/** What left through a sink, until the next `clearOutput`. */
@final
class Collector extends Sink {
  ptr: usize = heap.alloc(64);
  len: usize = 0;
  private room: usize = 64;

  write(ptr: usize, len: usize): void {
    if (this.len + len > this.room) {
      this.room = 2 * (this.len + len);
      this.ptr = heap.realloc(this.ptr, this.room);
    }
    memory.copy(this.ptr + this.len, ptr, len);
    this.len += len;
  }
}

const output = new Collector();

export function outputPtr(): usize {
  return output.ptr;
}

export function outputLen(): usize {
  return output.len;
}

export function clearOutput(): void {
  output.len = 0;
}

// ---- scanner

let paths = new Paths();
let scanner: Scanner | null = null;

export function clearPaths(): void {
  paths = new Paths();
}

export function addPath(ptr: usize, len: usize, id: i32): void {
  paths.add(String.UTF8.decodeUnsafe(ptr, len), id);
}

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

/** Reads a whole document fed in one piece: whether it is JSON. */
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

// ---- .npy

const npy = new NpyHeader();

/** Reads the header of a file whose first `len` bytes are there. `Reason.Size`: it does not end in them. */
export function npyRead(ptr: usize, len: usize): Reason {
  if (len < PREFIX_BYTES) return Reason.Size;
  const reason = readPrefix(ptr, npy);
  if (reason != Reason.None) return reason;
  return npy.size > <u64>len ? Reason.Size : readHeader(ptr, npy);
}

export function npySize(): f64 {
  return <f64>npy.size;
}

export function npyDtype(): Dtype {
  return npy.dtype;
}

export function npyRows(): f64 {
  return <f64>npy.rows;
}

export function npyLayers(): f64 {
  return <f64>npy.layers;
}

export function npyTopK(): f64 {
  return <f64>npy.topK;
}

/** Writes a header at `ptr`, which has room for 256 bytes. */
export function npyWrite(ptr: usize, dtype: Dtype, rows: f64, layers: f64, topK: f64): usize {
  const like = new NpyHeader();
  like.layers = <u64>layers;
  like.topK = <u64>topK;
  return writeHeader(ptr, like, dtype, <u64>rows);
}

// ---- prefill's reply

/** What checked rows of the exchange say. */
let examination = new Examination(RowCheck.Off, null);
let reply: PrefillReply | null = null;
let prompt: Prompt = new Prompt();

/** Whether the row of the last prompt token is decode's, of the replies to come. */
export function keepLastRow(decodes: bool): void {
  prompt.lastRowOfDecode = decodes;
}

/** A reply of `size` bytes; rows were asked for from token `start` on. */
export function replyStart(size: f64, start: f64): void {
  replyFree();
  reply = new PrefillReply(<u64>size, <u64>start, examination);
}

export function replyPush(ptr: usize, len: usize): bool {
  return reply!.push(ptr, len);
}

export function replyOffset(): f64 {
  return <f64>reply!.offset;
}

export function replyWantsRows(): bool {
  return reply!.wanted !== null;
}

export function replyRowsAt(): f64 {
  return <f64>reply!.wanted!.at;
}

/** 0: up to the first byte that is not base64. */
export function replyRowsLen(): f64 {
  return <f64>reply!.wanted!.len;
}

/** Gives a copy of the rows, in short pieces. */
export function replyTakeRows(ptr: usize, len: usize): bool {
  return takeInPieces(ptr, len, 6, false);
}

/** Rows that are parked in pieces of so many (a multiple of three). */
export function replyParkRows(ptr: usize, len: usize, rowsInPiece: f64): bool {
  return takeInPieces(ptr, len, <u64>rowsInPiece, true);
}

function takeInPieces(ptr: usize, len: usize, rowsInPiece: u64, park: bool): bool {
  const wanted = reply!.wanted!;
  const reader = wanted.reader;
  const pieceLen = rowsInPiece * 4;
  const end = alphabetEnd(ptr, ptr + len);
  const most = reader === null ? <u64>(end - ptr) : wanted.len;
  let chars: RowChars;
  if (park) chars = new ParkedChars(lot, pieceLen);
  else chars = new HeldChars(pieceLen);
  let reason = Reason.None;
  if (reader !== null && end < ptr + <usize>most) {
    reason = load<u8>(end) == 0x22 ? Reason.Size : Reason.Base64;
  }
  for (let at: u64 = 0; at < most; at += pieceLen) {
    const piece = copied(ptr + <usize>at, <usize>min(pieceLen, most - at));
    if (reader !== null && reason == Reason.None) reader.push(piece.ptr, piece.len);
    if (!chars.add(piece)) {
      chars.free();
      return false;
    }
  }
  if (reader !== null) {
    reader.end();
    if (reason == Reason.None) reason = reader.reason;
  }
  reply!.takeRows(chars, reason);
  return reply!.resume();
}

/** A parking that can lose a piece. */
@final
class Lot extends Parking {
  private pieces: Array<StaticArray<u8> | null> = [];
  used: i32 = 0;
  lost: i32 = -1;

  store(ptr: usize, len: usize): i32 {
    const piece = new StaticArray<u8>(<i32>len);
    memory.copy(changetype<usize>(piece), ptr, len);
    this.used++;
    return this.pieces.push(piece) - 1;
  }

  load(slot: i32): Block | null {
    const piece = this.pieces[slot];
    return piece === null || slot == this.lost ? null : copied(changetype<usize>(piece), piece.length);
  }

  drop(slot: i32, len: usize): void {
    const piece = this.pieces[slot];
    assert(piece !== null && piece.length == <i32>len);
    this.pieces[slot] = null;
    if (--this.used == 0) this.pieces.length = 0;
  }
}

const lot = new Lot();

/** Pieces that are parked. */
export function parkedPieces(): i32 {
  return lot.used;
}

/** The piece that can't be fetched; -1: none. */
export function loseParked(piece: i32): void {
  lot.lost = piece;
}

export function replyFinish(): bool {
  return reply!.finish();
}

export function replyPromptTokens(): f64 {
  return <f64>prompt.tokens;
}

export function replyKvStart(): f64 {
  return <f64>reply!.params.start;
}

export function replyKvEnd(): f64 {
  return <f64>reply!.params.end;
}

/** Keeps what the whole reply at `body` brings for the responses to come. Why its rows can't be used, if they can't. */
export function replyGive(body: usize): Reason {
  freeRows();
  reply!.giveRows(prompt);
  for (let kind = 0; kind < Kind.Count; kind++) {
    const span = reply!.span(<Kind>kind);
    if (span === null || (kind == Kind.PromptExperts && prompt.format != Format.Prompt)) continue;
    const text = new HeldChars(7);
    for (let at = span.start; at < span.end; at += 7) {
      text.add(copied(body + <usize>at, <usize>min<u64>(7, span.end - at)));
    }
    prompt.values.push(new PrefillValue(<Kind>kind, span.inChoice, text));
    if (kind != Kind.PromptExperts) continue;
    const check = new PromptCheck(examination);
    const reason = check.check(text, prompt.tokens);
    prompt.layers = check.layers;
    prompt.topK = check.topK;
    if (reason == Reason.None) continue;
    prompt.refuse(reason);
    prompt.values.pop();
    text.free();
  }
  return prompt.format == Format.None ? prompt.missing : Reason.None;
}

/** Whether there is routing for the responses to come. */
export function hasRows(): bool {
  return prompt.format != Format.None;
}

export function replyFree(): void {
  const old = reply;
  if (old !== null) old.free();
  reply = null;
}

export function freeRows(): void {
  prompt.free();
}

function copied(ptr: usize, len: usize): Block {
  const block = Block.alloc(len);
  memory.copy(block.ptr, ptr, len);
  return block;
}

// ---- decode's response

let expected = new Expected();
let rope: Rope | null = null;
let response: DecodeResponse | null = null;
let events: EventStream | null = null;
/** Bytes of the body that have come. */
let received: u64 = 0;

/** Expects the rows that `replyGiveRows` kept. */
export function responseStart(
  tail: bool,
  choices: i32,
  maxTokens: f64,
  missing: Reason,
  treatment: Treatment,
  form: Form,
  isEvents: bool,
): void {
  responseFree();
  expected = new Expected();
  expected.prompt = prompt;
  expected.examination = examination;
  // A case without a reply says why there is none.
  if (prompt.format == Format.None && missing != Reason.None) prompt.missing = missing;
  expected.tail = tail;
  expected.prompts = prompts;
  expected.choices = choices;
  expected.maxTokens = <i64>maxTokens;
  rope = new Rope();
  received = 0;
  const started = new DecodeResponse(expected, rope!, treatment, form, isEvents);
  response = started;
  if (isEvents) events = new EventStream(started);
}

let prompts = 1;

/** Responses are to requests with so many prompts. */
export function expectPrompts(n: i32): void {
  prompts = n;
}

let dropReplaced = false;

/** Pieces that are replaced whole are given back at once, as where nothing is read twice. */
export function responseSparing(sparing: bool): void {
  dropReplaced = sparing;
}

/** Takes a copy of a piece of the body. */
export function responsePush(ptr: usize, len: usize): void {
  const piece = copied(ptr, len);
  const at = rope!.append(piece, received);
  const stream = events;
  if (stream !== null) stream.push(at, len, received);
  else response!.push(at, len, received);
  if (dropReplaced && stream === null && response!.isReplaced(received)) rope!.discard(len);
  received += len;
}

/** Reads the held body again, as a response that holds all of it does. */
export function responseAgain(form: Form, treatment: Treatment): void {
  rope!.clearEdits();
  response!.free();
  const second = new DecodeResponse(expected, rope!, treatment, form, false);
  response = second;
  let offset: u64 = 0;
  for (let i = 0; i < rope!.pieceCount; i++) {
    const piece = rope!.piece(i);
    second.push(piece.ptr, piece.len, offset);
    offset += piece.len;
  }
}

/** Lets what is settled leave into the output. */
export function responseRelease(): void {
  const stream = events;
  rope!.release(stream !== null ? stream.settled : response!.settled, output);
}

/** Forgets the edits; everything leaves as it came. */
export function responseForward(): void {
  rope!.clearEdits();
  rope!.release(received, output);
}

/** Bytes of the next `len` that need not be read. */
export function responseUnread(len: f64): f64 {
  const stream = events;
  const ahead = stream !== null ? stream.replacedAhead : response!.replacedAhead;
  return rope!.held == 0 ? <f64>min<u64>(ahead, <u64>len) : 0;
}

/** Lets `len` bytes leave that are replaced whatever they are. False when the rope does not have them. */
export function responsePass(len: f64): bool {
  const n = <u64>len;
  if (!rope!.releaseUnread(n, output)) return false;
  const stream = events;
  if (stream !== null) stream.passReplaced(n);
  else response!.passReplaced(n);
  received += n;
  return true;
}

export function responseReason(): Reason {
  return response!.reason;
}

export function responseNulled(): Reason {
  return response!.nulled;
}

export function responsePlanned(): bool {
  return response!.planned;
}

export function responseDecided(): bool {
  return response!.decided;
}

export function responseComplete(): bool {
  return response!.complete;
}

export function responseBetweenDocuments(): bool {
  return response!.betweenDocuments;
}

export function responseChoices(): i32 {
  return response!.choices;
}

export function responseAgainForm(): Form {
  return response!.again;
}

export function responseGrowth(): f64 {
  return <f64>response!.growth;
}

/** Whether bytes were lost on the way. */
export function responseBroken(): bool {
  return rope!.broken;
}

export function responseHeld(): f64 {
  return <f64>rope!.held;
}

export function responseFree(): void {
  const oldRope = rope;
  if (oldRope !== null) oldRope.free();
  rope = null;
  const old = response;
  if (old !== null) old.free();
  response = null;
  events = null;
}

// ---- rows

const rowReader = new RowReader();

/** A new exchange. `layers`, `topK` and `experts` are the model's, 0 where they are not given. */
export function examinationStart(check: RowCheck, layers: f64, topK: f64, experts: f64): void {
  examinationFree();
  const known = layers + topK + experts > 0;
  examination = new Examination(check, known ? new Model(<u64>layers, <u64>topK, <u64>experts) : null);
}

export function examinationFree(): void {
  rowReader.free();
  examination.free();
}

export function examinationRow(
  leg: Leg,
  row: f64,
  bytes: usize,
  dtype: Dtype,
  layers: f64,
  topK: f64,
): Reason {
  return examination.examineRow(leg, <i64>row, bytes, dtype, <u64>layers, <u64>topK);
}

export function examinationJudge(early: bool): Reason {
  return examination.judge(early);
}

/** Writes where the fault is into the output. */
export function examinationDescribe(): void {
  const text = String.UTF8.encode(examination.describe());
  output.write(changetype<usize>(text), text.byteLength);
}

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
    examination,
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

export function rowsPush(ptr: usize, len: usize): Reason {
  rowReader.push(ptr, len);
  return rowReader.reason;
}

export function rowsEnd(): Reason {
  return rowReader.end();
}

// ---- requests

let connector: Connector = connectorNamed('nixl')!;
const session = new Session();
let request: RequestBody | null = null;
let requestPtr: usize = 0;
let requestLen: usize = 0;

/** The connector of the requests and legs that follow; false when there is none of that name. */
export function useConnector(ptr: usize, len: usize): bool {
  const named = connectorNamed(String.UTF8.decodeUnsafe(ptr, len));
  if (named !== null) connector = named;
  return named !== null;
}

/** What legs have between them. `random` are 16 bytes; `host` is borrowed until the next call. */
export function useSession(
  random: usize,
  host: usize,
  hostLen: usize,
  port: i32,
  rank: i32,
  engine: usize,
  engineLen: i32,
): void {
  memory.copy(session.randomPtr, random, RANDOM_BYTES);
  session.hostPtr = host;
  session.hostLen = hostLen;
  session.port = port;
  session.rank = rank;
  session.engineId = new StaticArray<u8>(engineLen);
  memory.copy(changetype<usize>(session.engineId), engine, engineLen);
}

/** Reads a request, borrowed until the next one. Returns its `Unfit`. */
export function requestRead(api: Api, ptr: usize, len: usize): i32 {
  requestPtr = ptr;
  requestLen = len;
  const read = new RequestBody(api, connector.schema, ptr, len);
  request = read;
  return read.unfit == Unfit.No ? connector.judge(read) : read.unfit;
}

export function requestChoices(): i32 {
  return request!.choices;
}

export function requestMaxTokens(): f64 {
  return <f64>request!.maxTokens;
}

export function requestHasParams(): bool {
  return request!.hasClientParams;
}

/** Writes the prefill leg into the output. False when its announced length is not its length. */
export function writePrefillLeg(): bool {
  const right = written(prefillLeg(request!, connector, session));
  session.release();
  return right;
}

/** Writes the headers of the prefill leg into the output, one a line. */
export function writePrefillHeaders(): void {
  prefillLeg(request!, connector, session);
  const colon = new Ascii(':');
  const feed = new Ascii('\n');
  for (let i = 0; i < session.headers.length; i++) {
    const header = session.headers[i];
    output.write(header.name.ptr, header.name.len);
    output.write(colon.ptr, colon.len);
    output.write(header.value.ptr, header.value.len);
    output.write(feed.ptr, feed.len);
  }
  session.release();
}

/** Writes the decode leg into the output. */
export function writeDecodeLeg(params: usize, paramsLen: usize, promptStart: f64): bool {
  session.paramsPtr = params;
  session.paramsLen = paramsLen;
  const right = written(decodeLeg(request!, connector, session, <i64>promptStart));
  session.release();
  return right;
}

/** Writes the request for an engine that serves it alone into the output. */
export function writeLocal(): bool {
  return written(withoutClientParams(request!));
}

function written(leg: Rewrite): bool {
  const before = output.len;
  leg.write(requestPtr, requestLen, output);
  const len = output.len - before;
  const block = leg.toBlock(requestPtr, requestLen);
  const same = block.len == len && memory.compare(block.ptr, output.ptr + before, len) == 0;
  block.free();
  return same && leg.lengthOf(requestPtr, requestLen) == len;
}

// ---- ranks of a bootstrap server

let ranks: Ranks | null = null;

/** Reads an answer; false when it tells no ranks. */
export function ranksRead(ptr: usize, len: usize): bool {
  ranks = Ranks.read(ptr, len);
  return ranks !== null;
}

/** The rank whose turn it is; its engine id goes into the output. */
export function rankNext(): i32 {
  const index = ranks!.next();
  const id = ranks!.ids[index];
  output.write(changetype<usize>(id), id.length);
  return ranks!.ranks[index];
}

// ---- endpoints

const endpoint = new Endpoint();
let endpoints = new Endpoints();

/** Reads an endpoint, borrowed until the next one. */
export function endpointRead(ptr: usize, len: usize): bool {
  return endpoint.read(ptr, len);
}

/** Writes what was read into the output; returns the length of its host. */
export function endpointWrite(): usize {
  const block = Block.alloc(ENDPOINT_BYTES);
  output.write(block.ptr, endpoint.write(block.ptr));
  block.free();
  return endpoint.hostLen;
}

export function endpointsClear(): void {
  endpoints = new Endpoints();
}

/** Adds an entry to the list; returns an `Entry`. */
export function endpointsAdd(ptr: usize, len: usize, names: bool): i32 {
  return endpoints.add(String.UTF8.decodeUnsafe(ptr, len), names);
}

/** Whether the list allows what was read. */
export function endpointsAllow(): bool {
  return endpoints.allow(endpoint);
}
