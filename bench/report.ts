// The results as Markdown and as a plot.

import type { Protocol } from '../test/scenario.ts';
import type { Format, Workload } from './bodies.ts';
import type { Kind } from './load.ts';
import type { Options } from './options.ts';
import { digits, megabytes, ratio, spread, withSpread, type Spread } from './stats.ts';

/** The measurement of one window of one subject. */
export interface Window {
  p50: number;
  p99: number;
  perSecond: number;
  /** CPU time of the proxy's process for one request, in milliseconds. */
  cpuMs: number;
  requests: number;
  /** Number of response bytes for one request. */
  bytes: number;
  verified: number;
  outcomes: Record<string, number>;
  failures: Record<string, number>;
}

export interface SubjectResult {
  name: string;
  kind: Kind;
  format: Format;
  /** Name of the subject in the cell that this one equals except for one thing. */
  beside?: string | undefined;
  /** Whether its client asks for the last rows only. */
  turn: boolean;
  windows: Window[];
  peakBytes: number;
}

export interface CellResult {
  workload: Workload;
  protocol: Protocol;
  concurrency: number;
  title: string;
  /** The subjects of the cell. The floor comes first. */
  subjects: SubjectResult[];
  profiles: string[];
}

export interface Report {
  command: string;
  machine: string;
  envoy: string;
  load: string;
  options: Options;
  results: CellResult[];
}

type Pick = (window: Window) => number;

/**
 * Ratios of windows that were measured one after the other, so that a disturbance during one repeat
 * affected both.
 */
function ratios(subject: SubjectResult, base: SubjectResult, pick: Pick): Spread {
  return spread(subject.windows.map((window, i) => pick(window) / pick(base.windows[i]!)));
}

const over = (subject: SubjectResult, pick: Pick) => spread(subject.windows.map(pick));
const p50: Pick = (window) => window.p50;
const cpu: Pick = (window) => window.cpuMs;

export function markdown(report: Report): string {
  const { command, machine, envoy, load, options, results } = report;
  const parts = [
    '# Benchmark',
    '',
    `    ${command}`,
    '',
    `${machine}; Envoy ${envoy}, one worker, default buffer limits; load average ${load}. ` +
      `${options.repeats} repeats of ${options.seconds} s of each subject, interleaved; median (least..most). ` +
      `${upstreamName(options.upstream)} to the engines.`,
    '',
    'The floor, "Envoy x 2", is the same Envoy without the filter: the client sends prefill\'s request and then decode\'s, one ' +
      "after the other, and gets both replies. A: decode returns all rows; A': the generated rows only. A client of the filter gets " +
      'the same response from both, so both are compared with one floor, that of A. A ratio is that of two windows of one repeat.',
    '',
    '## Ratios to the floor',
    '',
    ...ratioTable(results),
    '',
    ...besideSection(results),
    ...turnSection(results),
    '## Figures',
    '',
    ...figureTable(results),
    '',
  ];
  const failures = problems(results);
  parts.push('## Checks', '', checks(results), '');
  if (failures.length > 0) parts.push(...failures.map((line) => `- ${line}`), '');
  const profiles = results.flatMap((cell) => cell.profiles);
  if (profiles.length > 0) parts.push('## Profiles', '', profiles.join('\n\n'), '');
  return parts.join('\n');
}

const upstreamName = (protocol: Protocol) => (protocol === 'http1' ? 'HTTP/1' : 'HTTP/2');

function ratioTable(results: CellResult[]): string[] {
  const rows = results.flatMap(({ title, subjects }) => {
    const [floor] = subjects;
    const full = subjects.find(({ kind, format }) => kind === 'filter' && format === 'full');
    const whole = subjects.slice(1).filter(({ turn }) => !turn);
    return whole.map((subject) => {
      const toFull = subject.format === 'tail' && full;
      return [
        title,
        subject.name,
        withSpread(ratios(subject, floor!, p50)),
        withSpread(ratios(subject, floor!, cpu)),
        toFull ? ratio(ratios(subject, full, p50).median) : '',
        toFull ? ratio(ratios(subject, full, cpu).median) : '',
      ];
    });
  });
  return table(['workload', 'subject', 'p50', 'CPU', "A'/A p50", "A'/A CPU"], rows);
}

/** The section with the subjects that `--beside` asked for. */
function besideSection(results: CellResult[]): string[] {
  const rows = results.flatMap(({ title, subjects }) =>
    subjects.flatMap((subject) => {
      const same = subjects.find(({ name }) => name === subject.beside);
      if (!same || subject.turn) return [];
      const picks = [p50, cpu].map((pick) => withSpread(ratios(same, subject, pick)));
      return [[title, same.name, subject.name, ...picks]];
    }),
  );
  if (rows.length === 0) return [];
  const text = 'The filter to the same with one thing changed. A ratio is that of two windows of one repeat.';
  return [
    '## Ratios to the filter with a change',
    '',
    text,
    '',
    ...table(['workload', 'filter', 'to', 'p50', 'CPU'], rows),
    '',
  ];
}

/** The section with the conversations. */
function turnSection(results: CellResult[]): string[] {
  const rows = results.flatMap(({ title, subjects }) =>
    subjects.flatMap((turn) => {
      const whole = turn.turn && subjects.find(({ name }) => name === turn.beside);
      if (!whole) return [];
      const picks = [p50, cpu].map((pick) => withSpread(ratios(turn, whole, pick)));
      const bytes = over(turn, ({ bytes }) => bytes).median / over(whole, ({ bytes }) => bytes).median;
      return [[title, whole.name, ...picks, ratio(bytes)]];
    }),
  );
  if (rows.length === 0) return [];
  return [
    '## Turns',
    '',
    'A turn of a conversation asks for the rows of the last 256 prompt tokens and of what is generated ' +
      '(`routed_experts_prompt_start`), of a prompt that is sent whole. Ratios of it to the same request for all rows; a ratio ' +
      'is that of two windows of one repeat. The response has the same size for every prompt; what is left to grow with the ' +
      'prompt is the request.',
    '',
    ...table(['workload', 'filter', 'p50', 'CPU', 'response bytes'], rows),
    '',
  ];
}

function figureTable(results: CellResult[]): string[] {
  const rows = results.flatMap(({ title, subjects }) =>
    subjects.map((subject) => [
      title,
      subject.name,
      withSpread(over(subject, p50), digits),
      digits(over(subject, (window) => window.p99).median),
      digits(over(subject, (window) => window.perSecond).median),
      withSpread(over(subject, cpu), digits),
      megabytes(subject.peakBytes),
      megabytes(over(subject, (window) => window.bytes).median),
    ]),
  );
  return table(
    ['workload', 'subject', 'p50 ms', 'p99 ms', 'requests/s', 'CPU ms', 'peak RSS MB', 'response MB'],
    rows,
  );
}

function checks(results: CellResult[]): string {
  const windows = results.flatMap(({ subjects }) => subjects.flatMap(({ windows }) => windows));
  const sum = (pick: Pick) => windows.reduce((total, window) => total + pick(window), 0);
  const failed = sum((window) => total(window.failures));
  return (
    `${sum((window) => window.requests)} requests: status and length of each response, and of the filter's the outcome ` +
    `\`merged\`; ${sum((window) => window.verified)} of them compared byte for byte with what is expected. ${failed} failed.`
  );
}

const total = (counts: Record<string, number>) => Object.values(counts).reduce((sum, n) => sum + n, 0);

function problems(results: CellResult[]): string[] {
  const lines: string[] = [];
  for (const { title, subjects } of results) {
    for (const { name, windows } of subjects) {
      const counts = new Map<string, number>();
      for (const { failures } of windows) {
        for (const [what, n] of Object.entries(failures)) counts.set(what, (counts.get(what) ?? 0) + n);
      }
      for (const [what, n] of counts) lines.push(`${title}, ${name}: ${n} failed: ${what}`);
    }
  }
  return lines;
}

/**
 * A Markdown table. Each column is as wide as its widest cell, because the table is also read in
 * terminals.
 */
export function table(head: string[], rows: string[][]): string[] {
  const escaped = rows.map((row) => row.map((cell) => cell.replaceAll('|', '\\|')));
  const widths = head.map((title, i) => Math.max(3, title.length, ...escaped.map((row) => row[i]!.length)));
  const line = (cells: string[]) => `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(' | ')} |`;
  return [line(head), line(widths.map((width) => '-'.repeat(width))), ...escaped.map(line)];
}

// ---- plot

const PANEL = { width: 340, height: 220, left: 46, top: 44, right: 14, bottom: 40 };
const COLORS = ['#1f6feb', '#d1570c', '#2da44e', '#8250df', '#bf3989'];

interface Panel {
  title: string;
  cells: CellResult[];
}

/**
 * Ratios to the floor by size, with a panel for each protocol and concurrency: p50 on the left, CPU
 * on the right.
 */
export function plot({ results, command, machine }: Report): string {
  const first = results[0]!.workload;
  const same = ({ workload: w, subjects }: CellResult) =>
    !subjects.some(({ turn }) => turn) &&
    w.layers === first.layers &&
    w.topK === first.topK &&
    w.dtype === first.dtype;
  const panels = new Map<string, Panel>();
  for (const cell of results.filter(same)) {
    const title = `${upstreamName(cell.protocol)}, concurrency ${cell.concurrency}`;
    const panel = panels.get(title) ?? { title, cells: [] };
    panel.cells.push(cell);
    panels.set(title, panel);
  }
  const shown = results.filter(same).flatMap(({ subjects }) => subjects.slice(1).map(({ name }) => name));
  const names = [...new Set(shown)];
  const body = [...panels.values()].flatMap((panel, row) => [
    drawPanel(`p50 / floor: ${panel.title}`, panel.cells, p50, names, 0, row),
    drawPanel(`CPU / floor: ${panel.title}`, panel.cells, cpu, names, 1, row),
  ]);
  const width = PANEL.width * 2;
  const height = PANEL.height * panels.size + 62;
  const legend = names.map(
    (name, i) =>
      `<circle cx="${20 + i * 130}" cy="14" r="4" fill="${COLORS[i % COLORS.length]}"/>` +
      `<text x="${30 + i * 130}" y="18">${escapeXml(name)}</text>`,
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="sans-serif" font-size="11">`,
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    ...legend,
    ...body,
    `<text x="10" y="${height - 24}" fill="#57606a" font-size="10">${escapeXml(command)}</text>`,
    `<text x="10" y="${height - 10}" fill="#57606a" font-size="10">${escapeXml(machine)}</text>`,
    '</svg>',
    '',
  ].join('\n');
}

function drawPanel(
  title: string,
  cells: CellResult[],
  pick: Pick,
  names: string[],
  column: number,
  row: number,
): string {
  const series = names.map((name) =>
    cells.flatMap((cell) => {
      const subject = cell.subjects.find((candidate) => candidate.name === name);
      if (!subject) return [];
      return [{ tokens: cell.workload.tokens, value: ratios(subject, cell.subjects[0]!, pick) }];
    }),
  );
  const values = series.flat().flatMap(({ value }) => (Number.isFinite(value.most) ? [value.most] : []));
  const top = Math.max(1.4, ...values) * 1.05;
  const step = niceStep(top);
  const sizes = [...new Set(cells.map(({ workload }) => workload.tokens))].sort((a, b) => a - b);
  const x0 = column * PANEL.width + PANEL.left;
  const y0 = row * PANEL.height + PANEL.top + 12;
  const innerWidth = PANEL.width - PANEL.left - PANEL.right;
  const innerHeight = PANEL.height - PANEL.top - PANEL.bottom;
  const x = (tokens: number) => x0 + (innerWidth * (sizes.indexOf(tokens) + 0.5)) / sizes.length;
  const y = (value: number) => y0 + innerHeight * (1 - value / top);
  const out = [`<text x="${x0}" y="${y0 - 8}" font-weight="bold">${escapeXml(title)}</text>`];
  for (let tick = 0; tick <= top; tick += step) {
    const at = y(tick).toFixed(1);
    out.push(`<line x1="${x0}" x2="${x0 + innerWidth}" y1="${at}" y2="${at}" stroke="#e2e5e9"/>`);
    out.push(`<text x="${x0 - 6}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${digits2(tick)}</text>`);
  }
  const one = y(1).toFixed(1);
  out.push(
    `<line x1="${x0}" x2="${x0 + innerWidth}" y1="${one}" y2="${one}" stroke="#57606a" stroke-dasharray="4 3"/>`,
  );
  for (const tokens of sizes) {
    const at = x(tokens).toFixed(1);
    out.push(`<text x="${at}" y="${y0 + innerHeight + 15}" text-anchor="middle">${tokens}</text>`);
  }
  out.push(
    `<text x="${x0 + innerWidth / 2}" y="${y0 + innerHeight + 29}" text-anchor="middle" fill="#57606a">tokens</text>`,
  );
  series.forEach((points, i) => {
    const color = COLORS[i % COLORS.length];
    const shift = (i - (series.length - 1) / 2) * 8;
    const at = points.filter(({ value }) => Number.isFinite(value.median));
    const line = at.map(
      ({ tokens, value }) => `${(x(tokens) + shift).toFixed(1)},${y(value.median).toFixed(1)}`,
    );
    out.push(`<polyline points="${line.join(' ')}" fill="none" stroke="${color}" stroke-width="1.5"/>`);
    for (const { tokens, value } of at) {
      const cx = (x(tokens) + shift).toFixed(1);
      out.push(
        `<line x1="${cx}" x2="${cx}" y1="${y(value.least).toFixed(1)}" y2="${y(value.most).toFixed(1)}" stroke="${color}"/>`,
        `<circle cx="${cx}" cy="${y(value.median).toFixed(1)}" r="3.5" fill="${color}"/>`,
      );
    }
  });
  return out.join('\n');
}

const digits2 = (value: number) => String(Math.round(value * 100) / 100);

function niceStep(top: number): number {
  const power = 10 ** Math.floor(Math.log10(top / 4));
  const factor = [1, 2, 5, 10].find((step) => top / (step * power) <= 8) ?? 10;
  return factor * power;
}

const escapeXml = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
