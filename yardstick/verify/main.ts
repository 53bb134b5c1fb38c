// `npm run verify`, and the program `routed-experts-verify` of the npm package.

import { main } from './command.ts';

process.exitCode = await main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(error);
  return 2;
});
