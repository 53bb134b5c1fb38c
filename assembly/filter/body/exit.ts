// Where a held body leaves to.

import { BufferKind } from '../../abi/types';
import { BodySink, Outlet } from './body_sink';
import { WholeBody } from './whole_body';

export abstract class Exit {
  /** Takes the next bytes that leave: up to `most`. */
  abstract open(most: u64): Outlet;

  /** Whether bytes that were taken are not with Envoy yet, so that an error can still be answered. */
  abstract get keeps(): bool;
}

/** Bytes take the place of the piece that Envoy is giving to the filter. */
@final
export class ToEnvoy extends Exit {
  open(most: u64): Outlet {
    return new BodySink(BufferKind.ResponseBody);
  }

  get keeps(): bool {
    return false;
  }
}

/** The whole body is put together first: no piece is coming whose place it could take. */
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
