/**
 * How older Envoys differ from the newest one: the one place of the tests that knows, also for the
 * report of `npm run test:envoys`. docs/deploy.md says what follows for users.
 */

import { envoyVersion, findEnvoy } from '../../tools/envoy.mjs';

/** What an Envoy does up to a minor version of Envoy 1. */
interface Difference {
  until: number;
  /** In words, for the report. */
  what: string;
}

const DIFFERENCES = {
  /**
   * V8 13.8 guards its memory with a protection key (PKU). A thread that is older than the key may
   * not read that memory: its first request ends Envoy with a segmentation fault (SEGV_PKUERR). So
   * the first Wasm filter has to be in the configuration with which Envoy starts, before there are
   * workers. Envoy 1.38 has V8 14.6.
   */
  firstFilterAtStart: {
    until: 37,
    what: 'the first Wasm filter must be there when Envoy starts, on CPUs with PKU',
  },
  /**
   * A stream of HTTP/2 that Envoy gives up is reset with the code NO_ERROR. Since 1.37 the code is
   * INTERNAL_ERROR (runtime guard `reset_with_error`, changelogs/1.37.0.yaml).
   */
  resetsWithoutError: { until: 36, what: 'a reset of HTTP/2 has the code NO_ERROR' },
  /** As the bodies of 503 are in 1.37.0 and in 1.38.2. */
  tellsTransportFailures: {
    until: 37,
    what: "the body of Envoy's own 503 says why the connection failed",
  },
  /** Envoy before 1.38 refuses a configuration with this operator. */
  lacksSpanId: { until: 37, what: 'no `%SPAN_ID%`, so the example with traces does not run' },
} satisfies Record<string, Difference>;

const minorOf = (version: string) => Number(version.split('.')[1]);

/** How an Envoy differs from the newest one, in words. */
export function differencesOf(version: string): string[] {
  const own = Object.values(DIFFERENCES).filter(({ until }) => minorOf(version) <= until);
  return own.map(({ what }) => what);
}

/** Suites that need no Envoy import this, too. Without one, they expect what the newest does. */
const envoy = await findEnvoy();
const MINOR = envoy === null ? Infinity : minorOf(await envoyVersion(envoy));
const applies = ({ until }: Difference) => MINOR <= until;

export const FIRST_FILTER_AT_START = applies(DIFFERENCES.firstFilterAtStart);
export const RESETS_WITHOUT_ERROR = applies(DIFFERENCES.resetsWithoutError);
export const TELLS_TRANSPORT_FAILURES = applies(DIFFERENCES.tellsTransportFailures);
export const KNOWS_SPAN_ID = !applies(DIFFERENCES.lacksSpanId);
