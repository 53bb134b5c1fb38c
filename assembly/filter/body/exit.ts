// The ways in which a held body leaves.

import { BufferKind } from '../../abi/types';
import { BodySink, Outlet } from './body_sink';
import { WholeBody } from './whole_body';

export abstract class Exit {
  /** Returns an outlet for the next bytes that leave, which are at most `most`. */
  abstract open(most: u64): Outlet;

  /**
   * Whether the bytes that were taken have not gone to Envoy, so that the filter can still answer
   * with an error.
   */
  abstract get keeps(): bool;
}

/** The body takes the place of the piece that Envoy gives to the filter in a body callback. */
@final
export class ToEnvoy extends Exit {
  open(most: u64): Outlet {
    return new BodySink(BufferKind.ResponseBody);
  }

  get keeps(): bool {
    return false;
  }
}

/**
 * The body is put together in one block. This is for a body that leaves outside of its callbacks,
 * where there is no piece that it could replace.
 */
@final
export class ToBlock extends Exit {
  readonly body: WholeBody = new WholeBody();

  open(most: u64): Outlet {
    this.body.begin(most);
    return this.body;
  }

  get keeps(): bool {
    return true;
  }
}
