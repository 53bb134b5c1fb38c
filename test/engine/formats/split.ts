// Format C, which is vLLM 0.21's: the prompt rows apart from the generated rows. The prompt rows
// stand once beside `choices` or in each choice, the generated rows in each choice.

import type { Routing } from '../compute.ts';
import type { SplitOptions } from '../options.ts';
import { DTYPE_NAMES, bytesOf, dtypeOf, type Rows } from '../../../yardstick/rows.ts';
import type { MoeModel } from '../router.ts';
import { NOWHERE, from, shapeOf, type Format, type Members } from './format.ts';

export function splitFormat(model: MoeModel, options: SplitOptions = {}): Format {
  const { encoding = 'nested', place = 'top', remotePrompt = 'invalid' } = options;
  const encode = encoding === 'nested' ? nested : inBase64;
  const promptOf = (routing: Routing | null): Members => {
    if (routing?.remote && remotePrompt === 'missing') return {};
    if (!routing || (routing.remote && remotePrompt === 'null')) return { prompt_routed_experts: null };
    const { data } = routing.rows;
    const count = Math.max(routing.promptTokens - routing.start, 0);
    const rows = { data: data.subarray(0, count * model.layers * model.topK), count };
    return { prompt_routed_experts: encode(rows, model) };
  };
  return {
    encode(routing) {
      const prompt = promptOf(routing);
      const generated = routing && encode(from(routing, routing.promptTokens, model).rows, model);
      const members = { routed_experts: generated };
      const meta = { ...prompt, ...members };
      return place === 'top'
        ? { ...NOWHERE, choice: members, before: prompt, meta }
        : { ...NOWHERE, choice: meta, meta };
    },
  };
}

function nested({ data, count }: Rows, { layers, topK }: MoeModel): number[][][] {
  return Array.from({ length: count }, (_, row) =>
    Array.from({ length: layers }, (_, layer) => {
      const at = (row * layers + layer) * topK;
      return Array.from(data.subarray(at, at + topK));
    }),
  );
}

function inBase64(rows: Rows, model: MoeModel): object {
  return {
    encoding: 'base64',
    dtype: DTYPE_NAMES[dtypeOf(rows)],
    shape: shapeOf(model, rows.count),
    data: bytesOf(rows).toString('base64'),
  };
}
