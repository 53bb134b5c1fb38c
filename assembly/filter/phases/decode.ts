// Prefill has answered and decode's leg has been sent. The head of decode's response is awaited.

import { HeaderMapKind } from '../../abi/types';
import { ResponseHead } from '../heads';
import { Brought } from '../rows/brought';
import { openResponse } from './hold';
import { READ_BODY, takeDecodeHead } from './legs';
import { Course, Phase } from './phase';


@final
export class Decode extends Phase {
  /** Takes over what prefill brought. */
  constructor(
    course: Course,
    private readonly brought: Brought,
  ) {
    super(course);
  }

  get awaitsHead(): bool {
    return true;
  }

  onResponseHeaders(endOfStream: bool): i32 {
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    const status = takeDecodeHead(this.course, head, this.brought, endOfStream);
    return status == READ_BODY ? openResponse(this.course, head, this.brought, true) : status;
  }

  free(): void {
    this.brought.free();
  }
}
