// What two right answers to one request have in common.

/**
 * The members in which two right answers may differ: names, times, what P/D adds, and what engines
 * report about their caches.
 */
const OWN = new Set([
  ...['id', 'request_id', 'created', 'kv_transfer_params', 'system_fingerprint', 'e2e_latency'],
  ...['prompt_tokens_details', 'cached_tokens', 'cached_tokens_details', 'response_sent_to_client_ts'],
]);

/**
 * The content of a reply, with its arrays but without the members of its own: one document, or
 * those of an event stream. Throws if it is not JSON.
 */
export function meaningOf(reply: string): unknown[] {
  if (!reply.startsWith('data:')) return [essence(reply)];
  const events = reply.split('\n\n').filter((event) => event.startsWith('data: '));
  return events
    .map((event) => event.slice('data: '.length))
    .map((data) => (data === '[DONE]' ? data : essence(data)));
}

const essence = (json: string): unknown =>
  JSON.parse(json, (key, value: unknown) => (OWN.has(key) ? undefined : value));
