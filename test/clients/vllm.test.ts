// Clients of vLLM's API, with its `.npy` arrays.

import { runNode } from './node.ts';
import { runPython } from './programs.ts';
import { suite } from './suite.ts';

suite('vllm', [
  { name: 'openai 2', run: (of) => runPython('openai_sdk', 'vllm', of) },
  { name: 'openai 3', run: (of) => runPython('openai_sdk', 'vllm', of, { newest: true }) },
  { name: 'httpx, aiohttp', run: (of) => runPython('plain_http', 'vllm', of) },
  { name: 'litellm', run: (of) => runPython('litellm_sdk', 'vllm', of) },
  { name: "Node's openai", run: runNode },
]);
