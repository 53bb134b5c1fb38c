/** An OpenTelemetry collector that keeps the spans which it is sent (OTLP over gRPC). */

import { fileURLToPath } from 'node:url';
import {
  loadPackageDefinition,
  Server,
  ServerCredentials,
  type GrpcObject,
  type sendUnaryData,
  type ServerUnaryCall,
  type ServiceClientConstructor,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const PROTO = fileURLToPath(new URL('traces.proto', import.meta.url));

/** A span; ids are in hexadecimal digits, as in a `traceparent`. */
export interface Span {
  name: string;
  trace: string;
  id: string;
  /** Empty for the first span of a trace. */
  parent: string;
  kind: number;
  attributes: Record<string, string>;
  /** In nanoseconds since the Unix epoch. */
  start: bigint;
  end: bigint;
}

export interface Collector {
  readonly port: number;
  readonly spans: Span[];
  close(): Promise<void>;
}

interface Exported {
  resource_spans: { scope_spans: { spans: ExportedSpan[] }[] }[];
}

interface ExportedSpan {
  trace_id: Buffer;
  span_id: Buffer;
  parent_span_id: Buffer;
  name: string;
  kind: number;
  start_time_unix_nano: string;
  end_time_unix_nano: string;
  attributes: { key: string; value: { string_value: string } | null }[];
}

export async function startCollector(): Promise<Collector> {
  const definition = loadSync(PROTO, { keepCase: true, defaults: true, longs: String });
  const path = ['opentelemetry', 'proto', 'collector', 'trace', 'v1', 'TraceService'];
  const { service } = path.reduce<unknown>(
    (object, name) => (object as GrpcObject)[name],
    loadPackageDefinition(definition),
  ) as ServiceClientConstructor;
  const server = new Server();
  const spans: Span[] = [];
  server.addService(service, {
    Export: ({ request }: ServerUnaryCall<Exported, object>, reply: sendUnaryData<object>) => {
      for (const { scope_spans } of request.resource_spans)
        for (const scope of scope_spans) spans.push(...scope.spans.map(read));
      reply(null, {});
    },
  });
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  return { port, spans, close: async () => server.forceShutdown() };
}

function read(span: ExportedSpan): Span {
  return {
    name: span.name,
    trace: span.trace_id.toString('hex'),
    id: span.span_id.toString('hex'),
    parent: span.parent_span_id.toString('hex'),
    kind: span.kind,
    attributes: Object.fromEntries(span.attributes.map(({ key, value }) => [key, value?.string_value ?? ''])),
    start: BigInt(span.start_time_unix_nano),
    end: BigInt(span.end_time_unix_nano),
  };
}
