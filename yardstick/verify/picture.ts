// A picture of a run: a line per case, with the rows from left to right.

import { Row } from '../compare.ts';
import { lineOf, nameOf, namesOf } from './summary.ts';
import type { Result } from './run.ts';

/** Columns of the prompt's rows, of the last prompt row, and of the generated rows. */
const COLUMNS = [60, 1, 24];
const CELL = 9;
const LINE = 18;
const NAMES = 250;
const TOP = 46;
const GAP = 6;

const COLOURS: Record<string, string> = {
  none: '#eeeeee',
  unknown: '#d3d3d3',
  equal: '#2e7d5b',
  numerics: '#e0a83a',
  few: '#e57368',
  many: '#b3261e',
};

interface Cell {
  rows: number;
  compared: number;
  numerics: number;
  wrong: number;
}

export function pictureOf(results: readonly Result[]): string {
  const names = namesOf(results);
  const width = NAMES + COLUMNS.reduce((sum, n) => sum + n * CELL + GAP, 0) + 90;
  const height = TOP + names.length * LINE + 40;
  const lines = names.map((name, i) => {
    const own = results.filter((result) => nameOf(result) === name);
    return lineSvg(name, own, TOP + i * LINE);
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
      `viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11">`,
    `<rect width="${width}" height="${height}" fill="white"/>`,
    ...headings(),
    ...lines,
    ...legend(height - 18),
    '</svg>\n',
  ].join('\n');
}

function headings(): string[] {
  const titles = ['rows of the prompt, from the first to the last but one', 'last', 'generated rows'];
  let x = NAMES;
  return titles.map((title, i) => {
    const at = x;
    x += COLUMNS[i]! * CELL + GAP;
    // The heading of the one column of the last row would cover the next one.
    return `<text x="${at}" y="${i === 1 ? TOP - 22 : TOP - 8}">${title}</text>`;
  });
}

function lineSvg(name: string, results: readonly Result[], y: number): string {
  const cells = COLUMNS.map((columns) => Array.from({ length: columns }, empty));
  for (const { choices } of results) {
    for (const { promptTokens, start, rows } of choices) {
      rows.forEach((row, i) => add(cellOf(cells, start + i, promptTokens, start + rows.length), row));
    }
  }
  let x = NAMES;
  const drawn = cells.flatMap((zone) => {
    const squares = zone.map((cell, i) => {
      const title = `<title>${escape(name)}: ${cell.wrong} wrong of ${cell.rows}</title>`;
      return `<rect x="${x + i * CELL}" y="${y}" width="${CELL - 1}" height="${LINE - 4}" fill="${colourOf(cell)}">${title}</rect>`;
    });
    x += zone.length * CELL + GAP;
    return squares;
  });
  const { requests, verdicts } = lineOf(name, results);
  const text = `<text x="${NAMES - 8}" y="${y + 11}" text-anchor="end">${escape(name)}</text>`;
  const bad = verdicts.wrong + verdicts.missing;
  return [text, ...drawn, `<text x="${x + 2}" y="${y + 11}">${bad} of ${requests}</text>`].join('\n');
}

const empty = (): Cell => ({ rows: 0, compared: 0, numerics: 0, wrong: 0 });

/** The cell of the token at `position` of a choice whose rows end at `end`. */
function cellOf(cells: Cell[][], position: number, promptTokens: number, end: number): Cell {
  const last = promptTokens - 1;
  const [zone, at, length] =
    position < last
      ? [0, position, last]
      : position === last
        ? [1, 0, 1]
        : [2, position - promptTokens, end - promptTokens];
  return cells[zone]![Math.floor((at / length) * COLUMNS[zone]!)]!;
}

function add(cell: Cell, row: Row): void {
  cell.rows++;
  if (row !== Row.Unknown) cell.compared++;
  if (row === Row.Numerics) cell.numerics++;
  if (row === Row.Wrong) cell.wrong++;
}

function colourOf({ rows, compared, numerics, wrong }: Cell): string {
  if (rows === 0) return COLOURS['none']!;
  if (wrong > 0) return COLOURS[wrong * 2 > compared ? 'many' : 'few']!;
  return COLOURS[compared === 0 ? 'unknown' : numerics > 0 ? 'numerics' : 'equal']!;
}

function legend(y: number): string[] {
  const texts: Record<string, string> = {
    equal: 'equal',
    numerics: 'numerics',
    few: 'some wrong',
    many: 'most wrong',
    unknown: 'not compared',
    none: 'no rows',
  };
  return Object.entries(texts).map(([name, text], i) => {
    const x = NAMES + i * 105;
    return `<rect x="${x}" y="${y - 10}" width="12" height="12" fill="${COLOURS[name]}"/><text x="${x + 17}" y="${y}">${text}</text>`;
  });
}

const escape = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
