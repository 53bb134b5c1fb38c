// `npm start`: sets up what is missing, then runs the demo. For the arguments see
// tools/demo/options.ts.
import { runMain } from './problem.mjs';
import { setup } from './setup.mjs';

await runMain(import.meta.url, async () => {
  await setup(['node', 'packages', 'envoy', 'filter']);
  // Only after the setup are the packages there that load TypeScript.
  const { register } = await import('tsx/esm/api');
  register();
  const { demo } = await import('./demo.ts');
  await demo(process.argv.slice(2));
});
