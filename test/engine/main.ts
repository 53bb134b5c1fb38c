// Runs one engine as a process:
//   tsx test/engine/main.ts --role prefill [--port 0] [--connector nixl] [--version 0.30]
//       [--format A] [--http2]
// Engines in different processes share no KV. To run P/D, serve all engines from one process with
// `serveEngine`.

import { parseArgs } from 'node:util';
import { createEngine, type Connector, type FormatName, type Role, type Version } from './engine.ts';
import { serveEngine } from './server.ts';

const { values } = parseArgs({
  options: {
    role: { type: 'string', default: 'oracle' },
    connector: { type: 'string', default: 'nixl' },
    version: { type: 'string' },
    format: { type: 'string' },
    port: { type: 'string', default: '0' },
    http2: { type: 'boolean', default: false },
  },
});

const role = oneOf<Role>('role', values.role, ['prefill', 'decode', 'oracle']);
const connectors: Connector[] = ['nixl', 'shared_storage', 'sglang', 'mooncake'];
const connector = oneOf<Connector>('connector', values.connector, connectors);
const versions: Version[] = ['0.21', '0.30', '0.32'];
const version = values.version && { version: oneOf<Version>('version', values.version, versions) };
const format = values.format && { format: oneOf<FormatName>('format', values.format, ['A', 'B', 'C', 'D']) };
const engine = createEngine({ role, connector, ...version, ...format, now: Date.now });
const { port } = await serveEngine(engine, { port: Number(values.port), http2: values.http2 });
console.log(port);

function oneOf<T extends string>(name: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((item) => item === value);
  if (!found) throw new Error(`--${name} ${value}: expected one of ${allowed.join(', ')}`);
  return found;
}
