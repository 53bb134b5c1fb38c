// The results as a table in Markdown, which a router can put into its README, and as JUnit XML.

import junit from 'junit-report-builder';
import type { Case } from './cases.ts';
import type { Outcome } from './run.ts';

const PATH = 'docs/conformance.md';

export interface Ran {
  name: string;
  outcomes: Outcome[];
}

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ').slice(0, 140);

export function markdownOf(routers: readonly Ran[], cases: readonly Case[]): string {
  const lines = ['# Conformance', '', '    npm run conformance -- --out docs/conformance-results.md', ''];
  lines.push(`[${PATH}](conformance.md) says what each level means.`, '');
  for (const { name, outcomes } of routers) lines.push(`**${name}**: ${summary(outcomes, cases)}`, '');
  const names = routers.map(({ name }) => name);
  lines.push(
    `| level | case | must | ${names.join(' | ')} |`,
    `| --- | --- | --- | ${names.map(() => '---').join(' | ')} |`,
  );
  for (const of of cases) {
    const did = routers.map(({ outcomes }) => {
      const outcome = outcomes.find((one) => one.case === of);
      if (!outcome) return 'not run';
      return outcome.passed ? outcome.did : `**fails**: ${cell(outcome.did)}`;
    });
    lines.push(`| ${of.level} | ${cell(of.name)} (${of.connector}) | ${of.must} | ${did.join(' | ')} |`);
  }
  lines.push('', '## Why', '', ...cases.map(({ name, why }) => `- ${name}: ${why}`), '');
  return lines.join('\n');
}

function summary(outcomes: readonly Outcome[], cases: readonly Case[]): string {
  const parts = ([1, 2, 3] as const).map((level) => {
    const own = outcomes.filter((outcome) => outcome.case.level === level);
    const all = cases.filter((of) => of.level === level).length;
    const passed = own.filter((outcome) => outcome.passed).length;
    return `level ${level}: ${passed} of ${all}${own.length < all ? ` (${all - own.length} not run)` : ''}`;
  });
  return parts.join('; ');
}

export function junitOf(routers: readonly Ran[]): string {
  const builder = junit.newBuilder();
  for (const { name, outcomes } of routers) {
    const suite = builder.testSuite().name(name);
    for (const { case: of, passed, did, milliseconds } of outcomes) {
      const test = suite
        .testCase()
        .className(`level ${of.level}.${of.connector}`)
        .name(of.name)
        .time(milliseconds / 1000);
      if (!passed) test.failure(did);
    }
  }
  return builder.build();
}
