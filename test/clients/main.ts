// `npm run test:clients`: what real clients make of responses. `-- --report` writes what they did
// to bench/results/clients.md, with which later runs are compared.

import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ensureClients } from '../../tools/clients.mjs';
import { bin } from '../../tools/paths.mjs';
import { runMain } from '../../tools/problem.mjs';
import { runNode } from '../../tools/run.mjs';
import { writeReport } from './report.ts';

await runMain(import.meta.url, async () => {
  const { values, positionals } = parseArgs({
    options: { report: { type: 'boolean', default: false } },
    allowPositionals: true,
  });
  await ensureClients();
  const args = ['run', '--config', join('test', 'clients', 'vitest.config.ts'), ...positionals];
  const env = values.report ? { CLIENTS_REPORT: '1' } : {};
  const { code } = await runNode(bin('vitest'), args, { live: true, env });
  if (code === 0 && values.report) writeReport();
  process.exitCode = code;
});
