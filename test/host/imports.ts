/**
 * Host functions: `env.proxy_*` of ABI 0.2.1, and the WASI stubs that Envoy gives a module.
 * Each function makes the same checks in the same order as src/exports.cc and
 * include/proxy-wasm/exports.h of proxy-wasm-cpp-host.
 */

import { randomFillSync } from 'node:crypto';
import { BufferType, LOG_LEVELS, MapType, StreamType, WasmResult } from './abi.ts';
import { copyFrom, readBuffer } from './buffer.ts';
import { marshalPairs, unmarshalPairs } from './headers.ts';
import type { Signature } from './module.ts';
import type { Vm } from './vm.ts';

export interface HostFunction {
  type: Signature;
  run: (...args: (number | bigint)[]) => number | undefined;
}

const WASI = { success: 0, badf: 8, fault: 21, inval: 28, noent: 44, nosys: 52, notsup: 58 } as const;
/** PROXY_WASM_HOST_WASI_RANDOM_GET_MAX_SIZE_BYTES in limits.h. */
const RANDOM_MAX_BYTES = 64 * 1024;

const wasiNames = (names: string): string[] =>
  names.split(' ').flatMap((name) => [`wasi_unstable.${name}`, `wasi_snapshot_preview1.${name}`]);

/** What the guest may call while the host runs its malloc (`allocMemory` in wasm.h). */
export const ALLOWED_IN_MALLOC: ReadonlySet<string> = new Set([
  'env.proxy_log',
  ...wasiNames('fd_write clock_time_get poll_oneoff'),
]);

/** What the guest may call while the VM starts (`startVm` in wasm.cc). */
export const ALLOWED_IN_START: ReadonlySet<string> = new Set([
  'env.emscripten_notify_memory_growth',
  'env.proxy_log',
  ...wasiNames(
    'fd_write args_sizes_get args_get environ_sizes_get environ_get clock_time_get clock_res_get random_get ' +
      'poll_oneoff fd_fdstat_get fd_fdstat_set_flags fd_advise fd_allocate fd_datasync fd_fdstat_set_rights ' +
      'fd_filestat_get fd_filestat_set_size fd_filestat_set_times fd_pread fd_prestat_dir_name fd_prestat_get ' +
      'fd_pwrite fd_readdir fd_renumber fd_sync fd_tell path_create_directory path_filestat_get ' +
      'path_filestat_set_times path_link path_readlink path_remove_directory path_rename path_symlink ' +
      'path_unlink_file sock_accept sock_recv sock_send sock_shutdown',
  ),
]);

/**
 * WASI functions that do nothing but return an error code: their parameters and that code
 * (`wasi_unstable_*` in exports.cc).
 */
const WASI_STUBS: Record<string, [params: string, errno: number]> = {
  fd_read: ['iiii', WASI.nosys],
  fd_seek: ['iIii', WASI.success],
  fd_close: ['i', WASI.success],
  fd_fdstat_set_flags: ['ii', WASI.nosys],
  fd_fdstat_set_rights: ['iII', WASI.success],
  fd_advise: ['iIIi', WASI.success],
  fd_allocate: ['iII', WASI.success],
  fd_datasync: ['i', WASI.success],
  fd_filestat_set_size: ['iI', WASI.success],
  fd_filestat_set_times: ['iIIi', WASI.success],
  fd_pread: ['iiiIi', WASI.notsup],
  fd_pwrite: ['iiiIi', WASI.notsup],
  fd_readdir: ['iiiIi', WASI.notsup],
  fd_renumber: ['ii', WASI.notsup],
  fd_sync: ['i', WASI.success],
  fd_tell: ['ii', WASI.notsup],
  path_create_directory: ['iii', WASI.notsup],
  path_filestat_set_times: ['iiiiIIi', WASI.notsup],
  path_link: ['iiiiii', WASI.notsup],
  path_readlink: ['iiiiii', WASI.notsup],
  path_remove_directory: ['iii', WASI.notsup],
  path_rename: ['iiiiii', WASI.notsup],
  path_symlink: ['iiii', WASI.notsup],
  path_unlink_file: ['iii', WASI.notsup],
  sock_accept: ['iii', WASI.notsup],
  sock_recv: ['iiiiii', WASI.notsup],
  sock_send: ['iiiii', WASI.notsup],
  sock_shutdown: ['ii', WASI.notsup],
  sched_yield: ['', WASI.success],
  path_open: ['iiiiiIIii', WASI.noent],
  fd_prestat_get: ['ii', WASI.badf],
  fd_prestat_dir_name: ['iii', WASI.nosys],
  path_filestat_get: ['iiiii', WASI.notsup],
  fd_filestat_get: ['ii', WASI.badf],
};

/** Host functions of ABI 0.2.1 that the emulator does not implement. */
const UNIMPLEMENTED: Record<string, string> = {
  grpc_call: 'iiiiiiiiiiii',
  grpc_stream: 'iiiiiiiii',
  grpc_close: 'i',
  grpc_cancel: 'i',
  grpc_send: 'iiii',
};

type Run = (...args: number[]) => number;

/** Every import, by `module.name`. `vm` is used only when one of them is called. */
export function createImports(vm: Vm): Map<string, HostFunction> {
  const table = new Map<string, HostFunction>();
  const { Ok, NotFound, BadArgument, InvalidMemoryAccess, InternalFailure, Unimplemented } = WasmResult;
  const ok = (done: boolean): number => (done ? Ok : InvalidMemoryAccess);
  const text = (ptr: number, len: number): string | null => vm.memory.text(ptr, len);
  const proxy = (name: string, params: string, run: Run): void => {
    table.set(`env.proxy_${name}`, { type: `${params}:i`, run: run as HostFunction['run'] });
  };
  const wasi = (name: string, type: Signature, run: HostFunction['run']): void => {
    for (const key of wasiNames(name)) table.set(key, { type, run });
  };

  proxy('log', 'iii', (level, ptr, len) => {
    if (level >= LOG_LEVELS.length) return BadArgument;
    const bytes = vm.memory.view(ptr, len);
    if (!bytes) return InvalidMemoryAccess;
    vm.log(LOG_LEVELS[level], bytes.toString());
    return Ok;
  });
  proxy('get_log_level', 'i', (ptr) => ok(vm.memory.setU32(ptr, LOG_LEVELS.indexOf('info'))));
  proxy('get_status', 'iii', (codePtr, ptrPtr, sizePtr) => {
    const { statusCode, statusMessage } = vm.context.root;
    return ok(vm.memory.setU32(codePtr, statusCode) && vm.give(Buffer.from(statusMessage), ptrPtr, sizePtr));
  });

  proxy('set_property', 'iiii', (keyPtr, keyLen, ptr, len) => {
    const key = text(keyPtr, keyLen);
    const value = vm.memory.copy(ptr, len);
    if (key === null || !value) return InvalidMemoryAccess;
    return vm.context.setProperty(key, value);
  });
  proxy('get_property', 'iiii', (pathPtr, pathLen, ptrPtr, sizePtr) => {
    const path = text(pathPtr, pathLen);
    if (path === null) return InvalidMemoryAccess;
    const value = vm.context.getProperty(path);
    return value === null ? NotFound : ok(vm.give(value, ptrPtr, sizePtr));
  });

  proxy('continue_stream', 'i', (type) =>
    type > StreamType.Max ? BadArgument : vm.context.continueStream(type),
  );
  proxy('close_stream', 'i', (type) => (type > StreamType.Max ? BadArgument : vm.context.closeStream(type)));
  proxy(
    'send_local_response',
    'iiiiiiii',
    (status, detailsPtr, detailsLen, bodyPtr, bodyLen, pairsPtr, pairsLen, _grpc) => {
      const details = text(detailsPtr, detailsLen);
      const body = vm.memory.copy(bodyPtr, bodyLen);
      const pairs = vm.memory.copy(pairsPtr, pairsLen);
      if (details === null || !body || !pairs) return InvalidMemoryAccess;
      vm.context.sendLocalResponse(status, body, unmarshalPairs(pairs), details);
      vm.stopIteration = true;
      return Ok;
    },
  );
  proxy('set_effective_context', 'i', (id) => (vm.setEffectiveContext(id) ? Ok : BadArgument));
  // Only a root context that is shutting down can report that it is done (`done` in wasm.cc).
  proxy('done', '', () => NotFound);

  proxy('get_shared_data', 'iiiii', (keyPtr, keyLen, ptrPtr, sizePtr, casPtr) => {
    const key = text(keyPtr, keyLen);
    if (key === null) return InvalidMemoryAccess;
    const found = vm.process.sharedData.get(key);
    if (!found) return NotFound;
    return ok(vm.give(found.bytes, ptrPtr, sizePtr) && vm.memory.setU32(casPtr, found.cas));
  });
  proxy('set_shared_data', 'iiiii', (keyPtr, keyLen, ptr, len, cas) => {
    const key = text(keyPtr, keyLen);
    const value = vm.memory.copy(ptr, len);
    if (key === null || !value) return InvalidMemoryAccess;
    return vm.process.sharedData.set(key, value, cas);
  });
  proxy('register_shared_queue', 'iii', (namePtr, nameLen, tokenPtr) => {
    const name = text(namePtr, nameLen);
    if (name === null) return InvalidMemoryAccess;
    return ok(vm.memory.setU32(tokenPtr, vm.process.queues.register(name)));
  });
  proxy('resolve_shared_queue', 'iiiii', (_vmPtr, _vmLen, namePtr, nameLen, tokenPtr) => {
    const name = text(namePtr, nameLen);
    if (name === null) return InvalidMemoryAccess;
    const token = vm.process.queues.resolve(name);
    return token === null ? NotFound : ok(vm.memory.setU32(tokenPtr, token));
  });
  proxy('enqueue_shared_queue', 'iii', (token, ptr, len) => {
    const value = vm.memory.copy(ptr, len);
    return value ? vm.process.queues.enqueue(token, value) : InvalidMemoryAccess;
  });
  proxy('dequeue_shared_queue', 'iii', (token, ptrPtr, sizePtr) => {
    const value = vm.process.queues.dequeue(token);
    return typeof value === 'number' ? value : ok(vm.give(value, ptrPtr, sizePtr));
  });

  proxy('get_header_map_value', 'iiiii', (type, keyPtr, keyLen, ptrPtr, sizePtr) => {
    if (type > MapType.Max) return BadArgument;
    const key = text(keyPtr, keyLen);
    if (key === null) return InvalidMemoryAccess;
    const map = vm.context.constMap(type);
    if (!map) return vm.context.isLogging ? NotFound : BadArgument;
    const value = map.get(key);
    return value === undefined ? NotFound : ok(vm.give(Buffer.from(value, 'latin1'), ptrPtr, sizePtr));
  });
  for (const [name, edit] of [
    ['add_header_map_value', 'add'],
    ['replace_header_map_value', 'set'],
  ] as const) {
    proxy(name, 'iiiii', (type, keyPtr, keyLen, ptr, len) => {
      if (type > MapType.Max) return BadArgument;
      const key = text(keyPtr, keyLen);
      const value = text(ptr, len);
      if (key === null || value === null) return InvalidMemoryAccess;
      const map = vm.context.map(type);
      map?.[edit](key, value);
      return map ? Ok : BadArgument;
    });
  }
  proxy('remove_header_map_value', 'iii', (type, keyPtr, keyLen) => {
    if (type > MapType.Max) return BadArgument;
    const key = text(keyPtr, keyLen);
    if (key === null) return InvalidMemoryAccess;
    const map = vm.context.map(type);
    map?.remove(key);
    return map ? Ok : BadArgument;
  });
  proxy('get_header_map_pairs', 'iii', (type, ptrPtr, sizePtr) => {
    if (type > MapType.Max) return BadArgument;
    const pairs = vm.context.constMap(type)?.entries() ?? [];
    return ok(vm.give(pairs.length === 0 ? Buffer.alloc(0) : marshalPairs(pairs), ptrPtr, sizePtr));
  });
  proxy('set_header_map_pairs', 'iii', (type, ptr, len) => {
    if (type > MapType.Max) return BadArgument;
    const bytes = vm.memory.copy(ptr, len);
    if (!bytes) return InvalidMemoryAccess;
    const map = vm.context.map(type);
    if (!map) return BadArgument;
    map.clear();
    for (const [name, value] of unmarshalPairs(bytes)) map.add(name, value);
    return Ok;
  });
  proxy('get_header_map_size', 'ii', (type, sizePtr) => {
    if (type > MapType.Max) return BadArgument;
    const map = vm.context.map(type);
    return map ? ok(vm.memory.setU32(sizePtr, map.byteSize)) : BadArgument;
  });

  proxy('get_buffer_bytes', 'iiiii', (type, start, length, ptrPtr, sizePtr) => {
    if (type > BufferType.Max) return BadArgument;
    const buffer = vm.context.buffer(type);
    if (!buffer) return NotFound;
    // A Word has 64 bits, so start + length does not wrap. A read past the end returns what there
    // is.
    const size = Math.max(0, Math.min(length, buffer.length - start));
    return ok(vm.give(size === 0 ? Buffer.alloc(0) : readBuffer(buffer, start, size), ptrPtr, sizePtr));
  });
  proxy('get_buffer_status', 'iii', (type, lengthPtr, flagsPtr) => {
    if (type > BufferType.Max) return BadArgument;
    const buffer = vm.context.buffer(type);
    if (!buffer) return NotFound;
    return ok(vm.memory.setU32(lengthPtr, buffer.length) && vm.memory.setU32(flagsPtr, 0));
  });
  proxy('set_buffer_bytes', 'iiiii', (type, start, length, ptr, len) => {
    if (type > BufferType.Max) return BadArgument;
    const buffer = vm.context.buffer(type);
    if (!buffer) return NotFound;
    const data = vm.memory.copy(ptr, len);
    return data ? copyFrom(buffer, start, length, data) : InvalidMemoryAccess;
  });

  proxy(
    'http_call',
    'iiiiiiiiii',
    (uriPtr, uriLen, headPtr, headLen, bodyPtr, bodyLen, trailPtr, trailLen, timeoutMs, tokenPtr) => {
      const cluster = text(uriPtr, uriLen);
      const body = vm.memory.copy(bodyPtr, bodyLen);
      const headers = vm.memory.copy(headPtr, headLen);
      const trailers = vm.memory.copy(trailPtr, trailLen);
      if (cluster === null || !body || !headers || !trailers) return InvalidMemoryAccess;
      if (!vm.memory.setU32(tokenPtr, 0)) return InvalidMemoryAccess;
      const call = vm.process.callouts.start(vm, vm.context.root, {
        cluster,
        headers: unmarshalPairs(headers),
        body,
        timeoutMs: timeoutMs | 0,
      });
      if (call.result === Ok) vm.memory.setU32(tokenPtr, call.token);
      return call.result;
    },
  );

  proxy('set_tick_period_milliseconds', 'i', (period) => {
    vm.tickPeriods.set(vm.context.root.id, period);
    return Ok;
  });
  proxy('get_current_time_nanoseconds', 'i', (ptr) => ok(vm.memory.setU64(ptr, vm.process.now)));

  proxy('define_metric', 'iiii', (type, namePtr, nameLen, idPtr) => {
    const name = text(namePtr, nameLen);
    if (name === null) return InvalidMemoryAccess;
    const id = vm.metrics.define(type, name);
    return id === null ? BadArgument : ok(vm.memory.setU32(idPtr, id));
  });
  table.set('env.proxy_increment_metric', {
    type: 'iI:i',
    run: (id, offset) => vm.metrics.increment(Number(id), BigInt(offset)),
  });
  table.set('env.proxy_record_metric', {
    type: 'iI:i',
    run: (id, value) => vm.metrics.record(Number(id), BigInt.asUintN(64, BigInt(value))),
  });
  proxy('get_metric', 'ii', (id, ptr) => {
    const value = vm.metrics.get(id);
    return typeof value === 'number' ? value : ok(vm.memory.setU64(ptr, value));
  });

  proxy('call_foreign_function', 'iiiiii', (namePtr, nameLen, argPtr, argLen) => {
    const name = text(namePtr, nameLen);
    if (name === null || !vm.memory.view(argPtr, argLen)) return InvalidMemoryAccess;
    // clear_route_cache of foreign.cc. The emulator implements no other foreign function.
    return name === 'clear_route_cache' ? Ok : NotFound;
  });
  for (const [name, params] of Object.entries(UNIMPLEMENTED)) proxy(name, params, () => Unimplemented);

  wasi('fd_write', 'iiii:i', (fd, iovs, count, writtenPtr) => {
    if (fd !== 1 && fd !== 2) return WASI.badf;
    const parts: Buffer[] = [];
    for (let i = 0; i < Number(count); i++) {
      const iov = vm.memory.view(Number(iovs) + i * 8, 8);
      const part = iov && vm.memory.copy(iov.readUInt32LE(0), iov.readUInt32LE(4));
      if (!part) return WASI.fault;
      parts.push(part);
    }
    const said = Buffer.concat(parts);
    if (said.length > 0) vm.log(fd === 1 ? 'info' : 'error', said.toString().replace(/\n$/, ''));
    return vm.memory.setU32(Number(writtenPtr), said.length) ? WASI.success : WASI.fault;
  });
  wasi('fd_fdstat_get', 'ii:i', (fd, ptr) => {
    if (fd !== 1 && fd !== 2) return WASI.badf;
    const stat = Buffer.alloc(24);
    stat.writeUInt32LE(64, 8);
    vm.memory.write(Number(ptr), stat);
    return WASI.success;
  });
  wasi('environ_sizes_get', 'ii:i', (countPtr, sizePtr) => {
    const env = Object.entries(vm.process.env);
    const size = env.reduce((sum, [key, value]) => sum + Buffer.byteLength(`${key}=${value}`) + 1, 0);
    return vm.memory.setU32(Number(countPtr), env.length) && vm.memory.setU32(Number(sizePtr), size)
      ? WASI.success
      : WASI.fault;
  });
  wasi('environ_get', 'ii:i', (array, buffer) => {
    let at = Number(buffer);
    for (const [i, [key, value]] of Object.entries(vm.process.env).entries()) {
      const entry = Buffer.from(`${key}=${value}\0`);
      if (!vm.memory.setU32(Number(array) + i * 4, at) || !vm.memory.write(at, entry)) return WASI.fault;
      at += entry.length;
    }
    return WASI.success;
  });
  wasi('args_get', 'ii:i', () => WASI.success);
  wasi('args_sizes_get', 'ii:i', (countPtr, sizePtr) =>
    vm.memory.setU32(Number(countPtr), 0) && vm.memory.setU32(Number(sizePtr), 0) ? WASI.success : WASI.fault,
  );
  wasi('clock_time_get', 'iIi:i', (clock, _precision, ptr) => {
    if (Number(clock) > 1) return WASI.notsup;
    return vm.memory.setU64(Number(ptr), vm.process.now) ? WASI.success : WASI.fault;
  });
  wasi('clock_res_get', 'ii:i', (clock, ptr) => {
    if (Number(clock) > 1) return WASI.notsup;
    return vm.memory.setU64(Number(ptr), 1n) ? WASI.success : WASI.fault;
  });
  wasi('random_get', 'ii:i', (ptr, len) => {
    if (Number(len) > RANDOM_MAX_BYTES) return WASI.inval;
    return vm.memory.write(Number(ptr), randomFillSync(Buffer.alloc(Number(len))))
      ? WASI.success
      : WASI.fault;
  });
  wasi('poll_oneoff', 'iiii:i', (_in, _out, _count, eventsPtr) =>
    vm.memory.setU32(Number(eventsPtr), 0) ? WASI.success : WASI.fault,
  );
  // proc_exit only logs, and the guest goes on.
  wasi('proc_exit', 'i:', () => {
    vm.log('trace', 'wasi_unstable proc_exit');
    return undefined;
  });
  for (const [name, [params, errno]] of Object.entries(WASI_STUBS)) wasi(name, `${params}:i`, () => errno);

  table.set('env.pthread_equal', { type: 'ii:i', run: (a, b) => (a === b ? 1 : 0) });
  table.set('env.emscripten_notify_memory_growth', { type: 'i:', run: () => undefined });
  table.set('env.envoy_resolve_dns', { type: 'iii:i', run: () => InternalFailure });
  return table;
}
