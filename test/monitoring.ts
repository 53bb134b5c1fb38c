/**
 * The queries of the dashboard and the alerts, and the metrics and labels of Envoy that they use.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from '../tools/paths.mjs';

const read = (name: string) => readFileSync(join(ROOT, 'envoy', 'monitoring', name), 'utf8');

export interface Query {
  /** The title of the alert or panel. */
  name: string;
  expr: string;
}

interface Panel {
  title: string;
  targets?: { expr: string }[];
}

interface Dashboard {
  panels: Panel[];
}

export const dashboard = (): Dashboard => JSON.parse(read('dashboard.json')) as Dashboard;

/** The queries of the dashboard. Grafana's variables have the values that show everything. */
export function dashboardQueries(): Query[] {
  return dashboard().panels.flatMap(({ title, targets = [] }) =>
    targets.map(({ expr }) => ({
      name: title,
      expr: expr.replaceAll('$job', '.*').replaceAll('$instance', '.*').replaceAll('$__rate_interval', '1m'),
    })),
  );
}

/** The `expr` of each rule, which stands on the line of its key or is folded below it. */
export function alertQueries(): Query[] {
  const rules = read('alerts.yaml')
    .split(/^ {6}- alert: /m)
    .slice(1);
  return rules.map((rule) => {
    const name = rule.slice(0, rule.indexOf('\n'));
    const [, folded, inline] = /\n {8}expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)/.exec(rule)!;
    return { name, expr: (inline ?? folded)!.trim().replace(/\n\s+/g, ' ') };
  });
}

export interface Used {
  /** The names of metrics, or regular expressions that some name must match. */
  metrics: (string | RegExp)[];
  /** Labels in selectors, by metric. */
  labels: { metric: string; label: string }[];
}

/**
 * The metrics and labels that a query uses. This is no parser of PromQL: it reads only what these
 * files contain. The suite test:istio reads them with Prometheus's own parser.
 */
export function usedBy(expr: string): Used {
  const used: Used = { metrics: [], labels: [] };
  const bare = expr
    .replace(/"(?:[^"\\]|\\.)*"/g, (text, at: number) => {
      if (/__name__=~$/.test(expr.slice(0, at))) used.metrics.push(new RegExp(`^(?:${text.slice(1, -1)})$`));
      return '""';
    })
    .replace(/\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)/g, ' ')
    .replace(/\[[^\]]*\]/g, ' ');
  for (const [, metric, selector] of bare.matchAll(/([a-zA-Z_][a-zA-Z0-9_]*)?\{([^}]*)\}/g))
    for (const [, label] of selector!.matchAll(/(\w+)\s*[=!]/g))
      if (metric) used.labels.push({ metric, label: label! });
  const names = bare.replace(/\{[^}]*\}/g, '').matchAll(/[a-zA-Z_][a-zA-Z0-9_]*(?!\w|\s*\()/g);
  for (const [name] of names)
    if (!['and', 'or', 'unless', 'bool', 'offset'].includes(name)) used.metrics.push(name);
  return used;
}

/** Labels that Prometheus adds to every sample. */
const ADDED = ['job', 'instance', '__name__'];
/**
 * The label that holds the name of the cluster: in Envoy's stats, and in those of Istio's
 * bootstrap.
 */
const CLUSTER_NAMES = ['envoy_cluster_name', 'cluster_name'];

/** What the queries use and a scrape in the text format does not contain. */
export function missing(queries: Query[], scrape: string): string[] {
  const samples = scrape.split('\n').filter((line) => line && !line.startsWith('#'));
  const names = new Set(samples.map((line) => /^\w+/.exec(line)![0]));
  const lacks: string[] = [];
  for (const { name, expr } of queries) {
    const { metrics, labels } = usedBy(expr);
    if (metrics.length === 0) lacks.push(`${name}: no metric in ${expr}`);
    for (const metric of metrics) {
      const there =
        typeof metric === 'string' ? names.has(metric) : [...names].some((each) => metric.test(each));
      if (!there) lacks.push(`${name}: ${String(metric)}`);
    }
    for (const { metric, label } of labels) {
      if (ADDED.includes(label)) continue;
      const any = CLUSTER_NAMES.includes(label) ? CLUSTER_NAMES : [label];
      const there = samples.some(
        (line) => line.startsWith(`${metric}{`) && any.some((each) => new RegExp(`\\W${each}="`).test(line)),
      );
      if (!there) lacks.push(`${name}: ${metric}{${label}}`);
    }
  }
  return lacks;
}
