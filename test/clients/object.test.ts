// Trainers that read arrays as prime-rl's servers write them.

import { runPython } from './programs.ts';
import { suite } from './suite.ts';

suite('object', [
  { name: 'prime-rl', run: (of) => runPython('prime_rl', 'object', of), asksModels: true, asksTurns: true },
  { name: 'SkyRL', run: (of) => runPython('skyrl_client', 'object', of), asksTurns: true },
]);
