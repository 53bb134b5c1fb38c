// Finds dead links in Markdown: paths that the repository does not have, and anchors that no
// heading has. Links to other hosts are not followed.

import { posix } from 'node:path';
import GithubSlugger from 'github-slugger';
import MarkdownIt from 'markdown-it';

/** What the rules need to know of a repository. Paths are relative to its root, with `/`. */
export interface Repository {
  has(path: string): boolean;
  isFolder(path: string): boolean;
  read(path: string): string;
}

interface Link {
  line: number;
  target: string;
}

interface Page {
  links: Link[];
  anchors: Set<string>;
  /** References such as `[text][name]` without a definition `[name]: target`. */
  undefinedNames: Link[];
}

const markdown = new MarkdownIt({ html: true });

type Token = ReturnType<typeof markdown.parse>[number];

function readPage(text: string): Page {
  const page: Page = { links: [], anchors: new Set(), undefinedNames: [] };
  // GitHub numbers equal headings within a page, so each page has a slugger of its own.
  const slugger = new GithubSlugger();
  let line = 1;
  let inHeading = false;
  for (const token of markdown.parse(text, {})) {
    if (token.map) line = token.map[0] + 1;
    if (token.type === 'heading_open') inHeading = true;
    if (token.type === 'heading_close') inHeading = false;
    if (token.type === 'html_block') readHtml(token.content, line, page);
    if (token.type !== 'inline') continue;
    if (inHeading) page.anchors.add(slugger.slug(textOf(token)));
    readInline(token, line, page);
  }
  return page;
}

/** The text of a heading without its markup, from which GitHub makes the anchor. */
function textOf(inline: Token): string {
  return (inline.children ?? [])
    .filter(({ type }) => type === 'text' || type === 'text_special' || type === 'code_inline')
    .map(({ content }) => content)
    .join('');
}

function readInline(inline: Token, firstLine: number, page: Page): void {
  let line = firstLine;
  for (const token of inline.children ?? []) {
    if (token.type === 'softbreak' || token.type === 'hardbreak') line++;
    const target = token.attrGet('href') ?? token.attrGet('src');
    if (target !== null) page.links.push({ line, target: String(target) });
    if (token.type === 'html_inline') readHtml(token.content, line, page);
    if (token.type !== 'text') continue;
    for (const [name] of token.content.matchAll(/\[[^\][]+\]\[[^\][]*\]/g)) {
      page.undefinedNames.push({ line, target: name });
    }
  }
}

function readHtml(html: string, firstLine: number, page: Page): void {
  for (const match of html.matchAll(/\s(href|src|srcset|id|name)\s*=\s*(?:"([^"]*)"|'([^']*)')/g)) {
    const line = firstLine + html.slice(0, match.index).split('\n').length - 1;
    const value = match[2] ?? match[3] ?? '';
    if (match[1] === 'id' || match[1] === 'name') page.anchors.add(value);
    else page.links.push({ line, target: value.split(' ')[0]! });
  }
}

/** The dead links of the Markdown files at `paths`, each as `file:line: what is wrong`. */
export function deadLinks(paths: readonly string[], repository: Repository): string[] {
  const pages = new Map<string, Page>();
  const pageOf = (path: string): Page => {
    let page = pages.get(path);
    if (page === undefined) {
      page = readPage(repository.read(path));
      pages.set(path, page);
    }
    return page;
  };
  const dead: string[] = [];
  for (const path of paths) {
    const { links, undefinedNames } = pageOf(path);
    for (const { line, target } of links) {
      const fault = faultOf(path, target, repository, pageOf);
      if (fault !== undefined) dead.push(`${path}:${line}: ${target}: ${fault}`);
    }
    for (const { line, target } of undefinedNames) {
      dead.push(`${path}:${line}: ${target}: no line of the file says where this leads`);
    }
  }
  return dead;
}

function faultOf(
  from: string,
  target: string,
  repository: Repository,
  pageOf: (path: string) => Page,
): string | undefined {
  if (/^(?:[a-z][a-z0-9+.-]*:|\/\/)/i.test(target)) return undefined;
  const hash = target.indexOf('#');
  const [before, anchor] = hash < 0 ? [target, ''] : [target.slice(0, hash), target.slice(hash + 1)];
  const name = decodeURIComponent(before.replace(/\?.*$/, ''));
  let to = from;
  if (name.startsWith('/')) to = posix.normalize(name.slice(1));
  else if (name !== '') to = posix.join(posix.dirname(from), name);
  if (to === '..' || to.startsWith('../')) return 'leads out of the repository';
  to = to.replace(/\/$/, '');
  if (repository.isFolder(to)) {
    if (hash < 0) return undefined;
    to = posix.join(to, 'README.md');
  }
  if (!repository.has(to)) return `the repository has no ${to}`;
  if (hash < 0) return undefined;
  if (!to.endsWith('.md')) return faultOfLines(anchor, repository.read(to));
  const anchors = pageOf(to).anchors;
  const wanted = decodeURIComponent(anchor);
  if (wanted === '' || anchors.has(wanted)) return undefined;
  const list = [...anchors].map((one) => `#${one}`).join(' ');
  return `${to} has no heading #${wanted}; it has ${list || 'none'}`;
}

/**
 * Why `L10` or `L10-L20`, an anchor in a file that is not Markdown, is wrong; undefined when it is
 * right.
 */
function faultOfLines(anchor: string, text: string): string | undefined {
  const [, first, last] = /^L(\d+)(?:-L(\d+))?$/.exec(anchor) ?? [];
  if (first === undefined) return `#${anchor} is no line: such an anchor is #L10 or #L10-L20`;
  const lines = text.replace(/\n$/, '').split('\n').length;
  return Number(last ?? first) <= lines ? undefined : `the file has ${lines} lines`;
}
