// `npm run conformance`: docs/conformance.md describes it.

import { writeFileSync } from 'node:fs';
import { Command, InvalidArgumentError } from 'commander';
import { startRouter } from '../../bench/router.ts';
import { CASES, type ConnectorName } from './cases.ts';
import { CONNECTORS, FILTER } from './filter.ts';
import { junitOf, markdownOf, type Ran } from './report.ts';
import { runCases, type Router } from './run.ts';

interface Values {
  router: { name: string; command: string }[];
  connectors: ConnectorName[];
  out?: string;
  junit?: string;
}

const router = (text: string, before: Values['router'] = []): Values['router'] => {
  const at = text.indexOf('=');
  if (at < 1) throw new InvalidArgumentError('It is NAME=COMMAND.');
  return [...before, { name: text.slice(0, at), command: text.slice(at + 1) }];
};

const connectors = (text: string): ConnectorName[] =>
  text.split(',').map((name) => {
    const found = CONNECTORS.find((known) => known === name.trim());
    if (found) return found;
    throw new InvalidArgumentError(`Known are ${CONNECTORS.join(', ')}.`);
  });

async function main(): Promise<void> {
  const values = new Command('conformance')
    .description('What a P/D router does with rows: right, refused, or wrong.')
    .option(
      '--router <NAME=COMMAND>',
      'a router to run beside; {prefill} and {decode} are host:port, it listens on {port}; {connector} is one of --connectors',
      router,
      [],
    )
    .option('--connectors <list>', 'the connectors that these routers serve', connectors, ['nixl'])
    .option('--out <file>', 'writes the table in Markdown')
    .option('--junit <file>', 'writes JUnit XML')
    .parse()
    .opts<Values>();
  const others = values.router.map(({ name, command }): Router => ({
    name,
    connectors: values.connectors,
    start: (connector, { prefillPort, decodePort }) =>
      startRouter({ name, command: command.replaceAll('{connector}', connector) }, prefillPort, decodePort),
  }));
  const ran: Ran[] = [];
  for (const each of [FILTER, ...others]) {
    const outcomes = await runCases(each, CASES);
    ran.push({ name: each.name, outcomes });
    for (const { case: of, passed, did } of outcomes) {
      console.log(`${passed ? 'passes' : 'FAILS '}  ${each.name}  level ${of.level}  ${of.name}: ${did}`);
    }
  }
  if (values.out) writeFileSync(values.out, markdownOf(ran, CASES));
  if (values.junit) writeFileSync(values.junit, junitOf(ran));
  if (ran.some(({ outcomes }) => outcomes.some(({ passed }) => !passed))) process.exitCode = 1;
}

await main();
