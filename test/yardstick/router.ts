// A router that merges nothing, as a process, as `npm run conformance` starts other routers:
//
//     node --import tsx test/yardstick/router.ts {prefill} {decode} {port}

import { serveEngine } from '../engine/server.ts';
import type { Engine } from '../scenario.ts';
import { mergesNothing } from './deployments.ts';

const [prefill, decode, port] = process.argv.slice(2) as [string, string, string];

/** The engine at this address. */
const at =
  (address: string): Engine =>
  async ({ method, path, headers, body }) => {
    const kept = headers.filter(([name]) => name === 'content-type' || name === 'x-request-id');
    const sent = method === 'GET' ? {} : { body: Uint8Array.from(body) };
    const reply = await fetch(`http://${address}${path}`, { method, headers: kept, ...sent });
    return {
      status: reply.status,
      headers: [['content-type', reply.headers.get('content-type') ?? 'application/json']],
      chunks: [Buffer.from(await reply.arrayBuffer())],
    };
  };

await serveEngine(mergesNothing({ prefill: at(prefill), decode: at(decode) }), { port: Number(port) });
