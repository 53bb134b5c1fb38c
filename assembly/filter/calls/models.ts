// Prefill's list of its models, which tells the longest sequence of each. A VM remembers what an
// endpoint has said until a leg of an exchange with that endpoint fails.

import { bufferBytes } from '../../abi/host';
import { BufferKind, Status } from '../../abi/types';
import { Block } from '../../bytes/block';
import { ModelLimits } from '../../connectors/model_limits';
import { RequestBody } from '../../connectors/request_body';
import { Field } from '../../connectors/schema';
import { Config } from '../config/config';
import { ClientRequest } from '../request/client_request';
import { modelsPath, startModels } from './prefill_call';

/** An adapter has some hundred bytes in the answer. A longer answer is refused. */
const MAX_ANSWER_BYTES: u32 = 1 << 20;
/** How many endpoints are remembered at most. When one more comes, all are forgotten. */
const MAX_ENDPOINTS: i32 = 4096;

/** What endpoints have said, by `cluster host:port path`. */
const known = new Map<string, ModelLimits>();

/** The list of models of one exchange's prefill endpoint. */
@final
export class Models {
  private readonly key: string;

  constructor(
    private readonly config: Config,
    request: ClientRequest,
  ) {
    const cluster = config.cluster;
    const path = modelsPath(request.head.pairs);
    const endpoint = request.endpoint;
    this.key = String.UTF8.decodeUnsafe(cluster.ptr, cluster.len) + ' ';
    if (endpoint !== null) this.key += String.UTF8.decodeUnsafe(endpoint.ptr, endpoint.len);
    this.key += ' ' + String.UTF8.decodeUnsafe(path.ptr, path.len);
    path.free();
  }

  /** The longest sequence of the model that a request asks for; -1 when prefill must be asked. */
  limitFor(asked: RequestBody, body: Block): i64 {
    if (!known.has(this.key)) return -1;
    const model = asked.last(Field.Model);
    const limits = known.get(this.key);
    if (model === null) return limits.of(0, 0);
    return limits.of(body.ptr + <usize>model.valueStart, <usize>(model.valueEnd - model.valueStart));
  }

  /** Starts the call that asks prefill. */
  ask(request: ClientRequest): Status {
    return startModels(this.config, request.head.pairs, request.endpoint);
  }

  /** Reads prefill's answer, of `size` bytes. Returns false when it tells no length. */
  take(size: u32): bool {
    if (size > MAX_ANSWER_BYTES) return false;
    const answer = bufferBytes(BufferKind.CallResponseBody, 0, size);
    if (answer === null) return false;
    const limits = ModelLimits.read(answer.ptr, answer.len);
    answer.free();
    if (limits === null) return false;
    if (known.size >= MAX_ENDPOINTS) known.clear();
    known.set(this.key, limits);
    return true;
  }

  /** Forgets what prefill has said: another engine may run at its address by now. */
  forget(): void {
    known.delete(this.key);
  }
}
