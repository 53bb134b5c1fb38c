// Why the legs' routing can't be merged: the closed list of reasons that users see. The two
// functions are longer than others, as they are tables with a line for each reason; the texts below
// say what each means.

export const enum Reason {
  None,
  Json,
  Encoding,
  Hold,
  Memory,
  Duplicate,
  Format,
  /** The formats of the legs differ. */
  Mixed,
  Base64,
  Size,
  Magic,
  Version,
  Header,
  Order,
  Dtype,
  Shape,
  Layers,
  TopK,
  Rows,
  Prompt,
  Sentinel,
  Missing,
  Choices,
  Ambiguous,
  /** Prefill failed after decode had begun. */
  Prefill,
  /** No router can have given the rows. */
  Experts,
  /** Decode served the request alone, and may have taken tokens of the prompt from a cache. */
  Cached,
  /** More would have to leave at once than the filter behind this one takes. */
  Piece,
  /** This is no reason, but their number. */
  Count,
}

/**
 * The reason's token in the outcome header, the counter and the access log. This function is longer
 * than 50 lines because every reason has a case of its own.
 */
export function reasonToken(reason: Reason): string {
  switch (reason) {
    case Reason.Json:
      return 'json';
    case Reason.Encoding:
      return 'encoding';
    case Reason.Hold:
      return 'hold';
    case Reason.Memory:
      return 'memory';
    case Reason.Duplicate:
      return 'duplicate';
    case Reason.Format:
      return 'format';
    case Reason.Mixed:
      return 'mixed';
    case Reason.Base64:
      return 'base64';
    case Reason.Size:
      return 'size';
    case Reason.Magic:
      return 'magic';
    case Reason.Version:
      return 'version';
    case Reason.Header:
      return 'header';
    case Reason.Order:
      return 'order';
    case Reason.Dtype:
      return 'dtype';
    case Reason.Shape:
      return 'shape';
    case Reason.Layers:
      return 'layers';
    case Reason.TopK:
      return 'top_k';
    case Reason.Rows:
      return 'rows';
    case Reason.Prompt:
      return 'prompt';
    case Reason.Sentinel:
      return 'sentinel';
    case Reason.Missing:
      return 'missing';
    case Reason.Choices:
      return 'choices';
    case Reason.Ambiguous:
      return 'ambiguous';
    case Reason.Prefill:
      return 'prefill';
    case Reason.Cached:
      return 'cached';
    case Reason.Experts:
      return 'experts';
    case Reason.Piece:
      return 'piece';
    default:
      return 'none';
  }
}

/**
 * What was found, as a sentence for the body of an error. This function is longer than 50 lines
 * because every reason has a case of its own.
 */
export function reasonText(reason: Reason): string {
  switch (reason) {
    case Reason.Json:
      return 'the decode response is not a complete JSON object';
    case Reason.Encoding:
      return 'the decode response is compressed';
    case Reason.Hold:
      return 'no array was found in the first max_hold_bytes of the decode response';
    case Reason.Memory:
      return 'the response would exceed the memory that the filter may hold';
    case Reason.Duplicate:
      return 'a key on the way to the array occurs twice';
    case Reason.Format:
      return 'the value is not one that an array has, or a stream is not one of events with an object each';
    case Reason.Mixed:
      return 'the legs returned routing in different formats';
    case Reason.Base64:
      return 'the string is not plain base64';
    case Reason.Size:
      return 'the data is not as long as its header or shape announces';
    case Reason.Magic:
      return 'the data is not a .npy file';
    case Reason.Version:
      return 'the .npy version is not 1, 2 or 3';
    case Reason.Header:
      return 'the .npy header cannot be read';
    case Reason.Order:
      return 'the array is in Fortran order';
    case Reason.Dtype:
      return 'the dtype is not an 8, 16 or 32 bit integer that engines use';
    case Reason.Shape:
      return 'the shape does not have the three dimensions rows, layers, top_k';
    case Reason.Layers:
      return "the number of layers differs between the legs, or is not the configured model's";
    case Reason.TopK:
      return "top_k differs between the legs, or is not the configured model's";
    case Reason.Rows:
      return 'the decode array does not have the rows that were asked for';
    case Reason.Prompt:
      return 'the number of prompt rows is not the number of prompt tokens';
    case Reason.Sentinel:
      return 'the prefill array has a row of -1';
    case Reason.Missing:
      return 'the prefill reply has no array';
    case Reason.Choices:
      return 'the arrays are not one for each choice that was asked for';
    case Reason.Ambiguous:
      return 'the decode array may hold all rows or only the generated ones';
    case Reason.Prefill:
      return 'decode has answered without what prefill was asked for';
    case Reason.Cached:
      return 'decode served the request alone, and does not say that nothing of its prompt came from a cache';
    case Reason.Experts:
      return 'a row names experts that a router cannot have given';
    case Reason.Piece:
      return 'more than max_piece_bytes of the response would have to leave in one piece';
    default:
      return '';
  }
}
