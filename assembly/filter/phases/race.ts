// Both legs are in flight, since neither engine answers before the other has its request. Decode's
// response and prefill's reply are both awaited.

import { HeaderMapKind } from '../../abi/types';
import { SentCall } from '../calls/prefill_answer';
import { ResponseHead } from '../heads';
import { Brought } from '../rows/brought';
import { BothLegs } from './both_legs';
import { Decode } from './decode';
import { READ_BODY, takeDecodeHead } from './legs';
import { Course } from './phase';
import { Wait } from './wait';


@final
export class Race extends BothLegs {
  /** Takes over what is known. */
  constructor(course: Course, sent: SentCall, brought: Brought) {
    super(course, sent, brought);
  }

  get awaitsHead(): bool {
    return true;
  }

  onResponseHeaders(endOfStream: bool): i32 {
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    const status = takeDecodeHead(this.course, head, this.brought, endOfStream);
    if (status != READ_BODY) return status;
    const wait = new Wait(this.course, this.sent, this.brought, head);
    this.course.enter(wait);
    return wait.begin();
  }

  protected prefillEnded(): void {
    this.course.enter(new Decode(this.course, this.brought));
  }
}
