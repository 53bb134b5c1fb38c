// Clients of SGLang's API, with its int32 arrays.

import { runPython } from './programs.ts';
import { suite } from './suite.ts';

suite('sglang', [
  { name: 'AReaL', run: (of) => runPython('areal_client', 'sglang', of) },
  { name: 'miles', run: (of) => runPython('miles_client', 'sglang', of) },
  { name: 'openai 2', run: (of) => runPython('openai_sdk', 'sglang', of) },
  { name: 'httpx, aiohttp', run: (of) => runPython('plain_http', 'sglang', of) },
]);
