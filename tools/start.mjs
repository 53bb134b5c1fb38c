// `npm start`: sets up what is missing, then runs the demo. Arguments: see tools/demo/options.ts.
import { runMain } from './problem.mjs';
import { setup } from './setup.mjs';

await runMain(import.meta.url, async () => {
  await setup(['node', 'packages', 'envoy', 'filter']);
  // Only now are there packages to load TypeScript with.
  const { register } = await import('tsx/esm/api');
  register();
  const { demo } = await import('./demo.ts');
  await demo(process.argv.slice(2));
});
