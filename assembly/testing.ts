import { DecodeResponse, Expected, Treatment, Form } from './routing/decode_response';
import { EventStream } from './routing/event_stream';
import { PrefillReply } from './routing/prefill_reply';
import { Rope } from './bytes/rope';
export function a(): DecodeResponse {
  return new DecodeResponse(new Expected(), new Rope(), Treatment.Merge, Form.Unknown, false);
}
export function b(): EventStream {
  return new EventStream(a());
}
export function c(): PrefillReply {
  return new PrefillReply(10);
}
export function d(r: Rope): Rope {
  return r;
}
