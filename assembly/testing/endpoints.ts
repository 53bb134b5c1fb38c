// Endpoints as headers name them, and the list of those that a configuration allows.

import { Block } from '../bytes/block';
import { ENDPOINT_BYTES, Endpoint, Endpoints } from '../filter/config/endpoints';
import { output } from './shared';

const endpoint = new Endpoint();
let endpoints = new Endpoints();

/** Reads an endpoint, whose bytes are borrowed until the next one; false when it is none. */
export function endpointRead(ptr: usize, len: usize): bool {
  return endpoint.read(ptr, len);
}

/** Writes the endpoint that was read into the output; returns the length of its host. */
export function endpointWrite(): usize {
  const block = Block.alloc(ENDPOINT_BYTES);
  output.write(block.ptr, endpoint.write(block.ptr));
  block.free();
  return endpoint.hostLen;
}

/** Begins a new list of allowed endpoints. */
export function endpointsClear(): void {
  endpoints = new Endpoints();
}

/** Adds an entry to the list; `names`: it may be a name. Returns an `Entry`. */
export function endpointsAdd(ptr: usize, len: usize, names: bool): i32 {
  return endpoints.add(String.UTF8.decodeUnsafe(ptr, len), names);
}

/** Whether the list allows the endpoint that was read. */
export function endpointsAllow(): bool {
  return endpoints.allow(endpoint);
}
