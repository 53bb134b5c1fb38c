// Base64: the functions of `routing/base64.ts`, as they are.

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
} from '../routing/base64';
