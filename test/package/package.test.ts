// What `npm run package` writes. The test builds the package in two folders of its own, so that
// nothing in this folder can get into it.

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  cpSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  utimesSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { COMPILED_IN } from '../../tools/package/sbom.mjs';
import { ROOT } from '../../tools/paths.mjs';
import { TAKEN } from '../scenarios/configuration.ts';

const SOURCES = [
  'assembly',
  'envoy',
  'tools',
  'yardstick',
  'asconfig.json',
  'package.json',
  'package-lock.json',
  'README.md',
  'CHANGELOG.md',
  'LICENSE',
];

let folders: string[] = [];
let dist: string;

beforeAll(async () => {
  folders = ['one', 'another, longer'].map((name) => mkdtempSync(join(tmpdir(), `${name}-`)));
  await Promise.all(folders.map((folder, i) => packageIn(folder, i)));
  dist = join(folders[0]!, 'dist');
}, 300_000);
afterAll(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));

async function packageIn(folder: string, i: number): Promise<void> {
  for (const source of SOURCES) {
    cpSync(join(ROOT, source), join(folder, source), { recursive: true });
    // Neither the times nor the permissions of the sources may show in the result.
    utimesSync(join(folder, source), 1e9 * (i + 1), 1e9 * (i + 1));
  }
  chmodSync(join(folder, 'README.md'), i === 0 ? 0o600 : 0o666);
  symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
  const env = { ...process.env, TZ: i === 0 ? 'UTC' : 'Asia/Tokyo', LANG: i === 0 ? 'C' : 'de_DE.UTF-8' };
  const child = spawn(process.execPath, [join(folder, 'tools', 'package.mjs')], { env });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data));
  const [code] = await once(child, 'close');
  expect(code, output).toBe(0);
}

const files = (folder: string): string[] =>
  readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? files(join(folder, entry.name)) : [join(folder, entry.name)],
  );
const sha256 = (data: Buffer | string) => createHash('sha256').update(data).digest('hex');
const python = (script: string, ...args: string[]) =>
  execFileSync('python3', ['-c', script, ...args], { encoding: 'utf8', maxBuffer: 1 << 26 });

test('two builds are the same bytes', () => {
  const [one, other] = folders.map((folder) =>
    Object.fromEntries(
      files(join(folder, 'dist')).map((path) => [relative(folder, path), sha256(readFileSync(path))]),
    ),
  );
  expect(Object.keys(one!).length).toBeGreaterThan(8);
  expect(one).toEqual(other);
});

test('the module is the filter, and its sha256 is beside it', () => {
  const wasm = readFileSync(join(dist, 'filter.wasm'));
  const exports = WebAssembly.Module.exports(new WebAssembly.Module(wasm)).map(({ name }) => name);
  expect(exports).toContain('proxy_abi_version_0_2_1');
  expect(readFileSync(join(dist, 'filter.wasm.sha256'), 'utf8')).toBe(`${sha256(wasm)}  filter.wasm\n`);
});

interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
  artifactType?: string;
  annotations?: Record<string, string>;
}

describe('the image', () => {
  const read = (path: string) => readFileSync(join(dist, 'image', path));
  const blobOf = ({ digest }: Descriptor) => join('blobs', ...digest.split(':'));
  const jsonOf = (descriptor: Descriptor) => JSON.parse(read(blobOf(descriptor)).toString());
  const image = () => {
    const index = JSON.parse(read('index.json').toString());
    const manifest = jsonOf(index.manifests[0]);
    return { index, manifest, config: jsonOf(manifest.config) };
  };

  test('every descriptor has the digest and the size of its blob, and no other blob is there', () => {
    const { index } = image();
    const manifests = index.manifests as Descriptor[];
    const descriptors: Descriptor[] = [
      ...manifests,
      ...manifests.flatMap((each) => [jsonOf(each).config, ...jsonOf(each).layers]),
    ];
    for (const descriptor of descriptors) {
      const data = read(blobOf(descriptor));
      expect(`sha256:${sha256(data)}`).toBe(descriptor.digest);
      expect(data.length).toBe(descriptor.size);
    }
    expect(readdirSync(join(dist, 'image', 'blobs', 'sha256')).sort()).toEqual(
      [...new Set(descriptors.map(({ digest }) => digest.slice('sha256:'.length)))].sort(),
    );
  });

  test('is an OCI layout of one image', () => {
    expect(JSON.parse(read('oci-layout').toString())).toEqual({ imageLayoutVersion: '1.0.0' });
    const { index, manifest } = image();
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
    expect(index).toMatchObject({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.index.v1+json',
    });
    expect(index.manifests[0]).toMatchObject({
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      annotations: { 'org.opencontainers.image.ref.name': version },
    });
    const tagged = index.manifests.filter(({ annotations }: Descriptor) => annotations);
    expect(tagged).toEqual([index.manifests[0]]);
    expect(manifest).toMatchObject({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: { mediaType: 'application/vnd.oci.image.config.v1+json' },
      // Istio and Envoy Gateway look for this media type in the last layer.
      layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip' }],
      annotations: {
        'org.opencontainers.image.title': 'routed-experts-filter',
        'org.opencontainers.image.version': version,
        'module.wasm.image/variant': 'compat',
      },
    });
  });

  test('its one layer holds plugin.wasm and nothing else', () => {
    const { manifest, config } = image();
    expect(manifest.layers).toHaveLength(1);
    const script = `
import gzip, hashlib, json, sys, tarfile
data = gzip.open(sys.argv[1]).read()
entries = [(m.name, m.isfile(), m.mode, m.mtime, m.uid, hashlib.sha256(t.extractfile(m).read()).hexdigest())
           for t in [tarfile.open(sys.argv[1])] for m in t]
print(json.dumps([hashlib.sha256(data).hexdigest(), entries]))`;
    const path = join(dist, 'image', blobOf(manifest.layers[0]));
    const [diff, entries] = JSON.parse(python(script, path));
    const wasm = sha256(readFileSync(join(dist, 'filter.wasm')));
    expect(entries).toEqual([['plugin.wasm', true, 0o644, 0, 0, wasm]]);
    expect(config.rootfs).toEqual({ type: 'layers', diff_ids: [`sha256:${diff}`] });
    expect(config).toMatchObject({ os: 'linux', architecture: 'amd64' });
  });
});

describe('what says of what the artefacts are made', () => {
  const read = (name: string) => readFileSync(join(dist, name));
  const bom = () => JSON.parse(read('sbom.cdx.json').toString());

  test('the bill of materials names the module, and every package of the lock file with its hash', () => {
    const { bomFormat, metadata, components } = bom();
    expect(bomFormat).toBe('CycloneDX');
    expect(metadata.component).toMatchObject({
      name: 'routed-experts-filter',
      hashes: [{ alg: 'SHA-256', content: sha256(read('filter.wasm')) }],
    });
    const lock = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
      packages: Record<string, { version: string; integrity?: string }>;
    };
    const locked = Object.entries(lock.packages).filter(([path]) => path !== '');
    const name = (path: string) => path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
    expect(components.map((each: { 'bom-ref': string }) => each['bom-ref'])).toEqual(
      [...new Set(locked.map(([path, { version }]) => `${name(path)}@${version}`))].sort(),
    );
    const hash = (integrity: string) => Buffer.from(integrity.split('-')[1]!, 'base64').toString('hex');
    for (const [path, { version, integrity }] of locked) {
      const found = components.find((each: object) => {
        return (each as { 'bom-ref': string })['bom-ref'] === `${name(path)}@${version}`;
      });
      expect(found.hashes[0].content, path).toBe(hash(integrity!));
    }
  });

  test('what is in the module or in verify is required, and everything else is excluded', () => {
    const components = bom().components as { name: string; scope: string }[];
    const required = components.filter(({ scope }) => scope === 'required').map(({ name }) => name);
    const bundled = [
      ...read('verify.mjs')
        .toString()
        .matchAll(/^\/\/ node_modules\/((?:@[^/]+\/)?[^/]+)/gm),
    ];
    expect(bundled.length).toBeGreaterThan(0);
    expect(required.sort()).toEqual(
      [...new Set([...COMPILED_IN, ...bundled.map((found) => found[1]!)])].sort(),
    );
    const imported = files(join(ROOT, 'assembly')).flatMap((path) =>
      [
        ...readFileSync(path, 'utf8').matchAll(
          /^(?:import|export|\}).* from '(@[^/']+\/[^/']+|[^.@/'][^/']*)/gm,
        ),
      ].map((found) => found[1]!),
    );
    expect(new Set(imported).size).toBeGreaterThan(1);
    for (const each of imported) expect(COMPILED_IN).toContain(each);
  });

  test('the provenance names the artefacts by their sha256, and what they were made of', () => {
    const statement = JSON.parse(read('provenance.intoto.json').toString());
    expect(statement).toMatchObject({
      _type: 'https://in-toto.io/Statement/v1',
      predicateType: 'https://slsa.dev/provenance/v1',
    });
    const archive = readdirSync(dist).find((name) => name.endsWith('.tgz'))!;
    const image = JSON.parse(read('image/index.json').toString()).manifests[0];
    expect(statement.subject).toEqual([
      { name: 'filter.wasm', digest: { sha256: sha256(read('filter.wasm')) } },
      { name: archive, digest: { sha256: sha256(read(archive)) } },
      { name: 'image', digest: { sha256: image.digest.slice('sha256:'.length) } },
    ]);
    expect(statement.predicate.buildDefinition.resolvedDependencies).toEqual([
      {
        name: 'package-lock.json',
        digest: { sha256: sha256(readFileSync(join(ROOT, 'package-lock.json'))) },
      },
    ]);
  });

  test('both are referrers of the image', () => {
    const [image, ...referrers] = JSON.parse(read('image/index.json').toString()).manifests as Descriptor[];
    const blob = ({ digest }: Descriptor) => read(`image/blobs/${digest.replace(':', '/')}`);
    const said = referrers.map((descriptor) => {
      const { subject, artifactType, layers } = JSON.parse(blob(descriptor).toString());
      expect(subject).toEqual({ mediaType: image!.mediaType, digest: image!.digest, size: image!.size });
      expect(descriptor.artifactType).toBe(artifactType);
      const title = layers[0].annotations['org.opencontainers.image.title'];
      expect(blob(layers[0]).equals(read(title))).toBe(true);
      return [artifactType, title];
    });
    expect(said).toEqual([
      ['application/vnd.cyclonedx+json', 'sbom.cdx.json'],
      ['application/vnd.in-toto+json', 'provenance.intoto.json'],
    ]);
  });
});

describe('the npm package', () => {
  test('publint has nothing to say of it', async () => {
    const archive = readdirSync(dist).find((name) => name.endsWith('.tgz'))!;
    const { messages, pkg } = await publint({ pack: { tarball: readFileSync(join(dist, archive)).buffer } });
    expect(messages.map((message) => formatMessage(message, pkg))).toEqual([]);
  });

  const unpacked = () => {
    const archive = readdirSync(dist).find((name) => name.endsWith('.tgz'))!;
    const script = `
import base64, json, sys, tarfile
t = tarfile.open(sys.argv[1])
print(json.dumps({m.name: base64.b64encode(t.extractfile(m).read()).decode() for m in t if m.isfile()}))`;
    const parts = JSON.parse(python(script, join(dist, archive))) as Record<string, string>;
    return Object.fromEntries(
      Object.entries(parts).map(([name, text]) => [
        name.slice('package/'.length),
        Buffer.from(text, 'base64'),
      ]),
    );
  };

  test('has the module, the schema, types, manifests and the documents', () => {
    const content = unpacked();
    const names = Object.keys(content).sort();
    const manifests = files(join(ROOT, 'envoy')).map((path) => join('dist', relative(ROOT, path)));
    const built = [
      'dist/config.d.ts',
      'dist/filter.wasm',
      'dist/filter.wasm.sha256',
      'dist/sbom.cdx.json',
      'dist/verify.mjs',
    ];
    const documents = ['CHANGELOG.md', 'LICENSE', 'README.md', 'package.json'];
    expect(names).toEqual([...manifests, ...built, ...documents].sort());
    for (const name of built)
      expect(content[name]!.equals(readFileSync(join(dist, relative('dist', name))))).toBe(true);
  });

  test('its program runs where no package is installed', () => {
    const folder = mkdtempSync(join(tmpdir(), 'bin-'));
    folders.push(folder);
    const { bin } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
      bin: Record<string, string>;
    };
    expect(bin).toEqual({ 'routed-experts-verify': 'dist/verify.mjs' });
    cpSync(join(dist, 'verify.mjs'), join(folder, 'verify.mjs'));
    const run = (...args: string[]) =>
      spawnSync(process.execPath, [join(folder, 'verify.mjs'), ...args], { encoding: 'utf8' });
    expect(run('--help')).toMatchObject({ status: 0, stdout: expect.stringContaining('--oracle <url>') });
    const unreachable = run('--through', 'http://127.0.0.1:1');
    expect(unreachable).toMatchObject({ status: 2, stdout: expect.stringContaining('does not answer') });
  });

  test('every export is a file of it', () => {
    const content = unpacked();
    const { exports } = JSON.parse(content['package.json']!.toString()) as {
      exports: Record<string, string | { types: string }>;
    };
    for (const [name, target] of Object.entries(exports)) {
      const path = (typeof target === 'string' ? target : target.types).slice('./'.length).replace(/\*$/, '');
      expect(Object.keys(content).filter((file) => file.startsWith(path)).length, name).toBeGreaterThan(0);
    }
  });

  test('manifests name the sha256 of the module', () => {
    const digest = sha256(readFileSync(join(dist, 'filter.wasm')));
    const written = files(join(dist, 'envoy')).map((path) => readFileSync(path, 'utf8'));
    expect(written.join('')).not.toContain('0'.repeat(64));
    const sources = files(join(ROOT, 'envoy')).map((path) => readFileSync(path, 'utf8'));
    const asked = sources.filter((text) => text.includes('0'.repeat(64))).length;
    expect(written.filter((text) => text.includes(digest)).length).toBe(asked);
  });
});

describe('the types', () => {
  /** The errors that TypeScript reports for each configuration. */
  const complaints = (configurations: string[]): string[][] => {
    const name = join(dist, 'check.ts');
    const lines = configurations.map((text, i) => `export const c${i}: Configuration = ${text};`);
    const source = ["import type { Configuration } from './config';", ...lines].join('\n');
    const options: ts.CompilerOptions = { strict: true, noEmit: true, types: [], lib: ['lib.es2022.d.ts'] };
    const host = ts.createCompilerHost(options);
    const { getSourceFile, fileExists } = host;
    host.fileExists = (path) => path === name || fileExists(path);
    host.getSourceFile = (path, version) =>
      path === name ? ts.createSourceFile(path, source, version) : getSourceFile(path, version);
    const program = ts.createProgram([name], options, host);
    const found = configurations.map((): string[] => []);
    for (const { start, file, messageText } of ts.getPreEmitDiagnostics(program)) {
      const line = file?.fileName === name ? file.getLineAndCharacterOfPosition(start ?? 0).line : 0;
      const said = ts.flattenDiagnosticMessageText(messageText, '\n');
      if (line === 0) throw new Error(said);
      found[line - 1]!.push(said);
    }
    return found;
  };

  test('take what the filter takes', () => {
    const texts = TAKEN.map((config) =>
      JSON.stringify({ ...config, prefill: { cluster: 'prefill', ...(config['prefill'] ?? {}) } }),
    );
    expect(complaints(texts).flat()).toEqual([]);
  });

  test('refuse keys that do not exist, and values of other types', () => {
    const wrong = [
      '{}',
      '{ prefill: {} }',
      "{ prefill: { cluster: 'x', clusters: 'y' } }",
      '{ prefill: { cluster: 1 } }',
      "{ prefill: { cluster: 'x' }, on_unmergeable: 'drop' }",
      "{ prefill: { cluster: 'x' }, hold_bytes: '1' }",
      "{ prefill: { cluster: 'x' }, paths: '/v1/completions' }",
      "{ prefill: { cluster: 'x' }, no_such_key: 1 }",
    ];
    complaints(wrong).forEach((said, i) => expect(said, wrong[i]).toHaveLength(1));
  });
});
