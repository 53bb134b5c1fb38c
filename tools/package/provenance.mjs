// What was built, of what, and by whom: an in-toto statement with the predicate of SLSA's
// provenance, version 1. It is not signed; a signature over it is made when a release is published.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from '../paths.mjs';

/**
 * @param {{ name: string, version: string }} project
 * @param {{ name: string, sha256: string }[]} subjects
 */
export function provenanceOf({ name, version }, subjects) {
  const purl = `pkg:npm/${name}@${version}`;
  const lock = readFileSync(join(ROOT, 'package-lock.json'));
  const statement = {
    _type: 'https://in-toto.io/Statement/v1',
    subject: subjects.map(({ name: of, sha256 }) => ({ name: of, digest: { sha256 } })),
    predicateType: 'https://slsa.dev/provenance/v1',
    predicate: {
      buildDefinition: {
        buildType: `${purl}#npm-run-package`,
        externalParameters: { command: 'npm run package' },
        resolvedDependencies: [
          ...source(),
          { name: 'package-lock.json', digest: { sha256: createHash('sha256').update(lock).digest('hex') } },
        ],
      },
      runDetails: { builder: { id: builder(purl) } },
    },
  };
  return Buffer.from(`${JSON.stringify(statement, null, 2)}\n`);
}

/** The commit of the sources; nothing where they differ from a commit or have none. */
function source() {
  if (!existsSync(join(ROOT, '.git'))) return [];
  /** @param {string[]} args */
  const git = (...args) => execFileSync('git', args, { cwd: ROOT, encoding: 'utf8' }).trim();
  if (git('status', '--porcelain') !== '') return [];
  const { GITHUB_SERVER_URL: server, GITHUB_REPOSITORY: repository } = process.env;
  const uri = server && repository ? { uri: `git+${server}/${repository}` } : { name: 'source' };
  return [{ ...uri, digest: { gitCommit: git('rev-parse', 'HEAD') } }];
}

/**
 * A workflow of GitHub names itself. Any other builder is somebody's machine, of which the
 * statement says no more.
 * @param {string} purl
 */
function builder(purl) {
  const { GITHUB_SERVER_URL: server, GITHUB_WORKFLOW_REF: workflow } = process.env;
  return server && workflow ? `${server}/${workflow}` : `${purl}#unknown-builder`;
}
