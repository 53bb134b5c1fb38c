// Writes an OCI image layout (image-spec 1.1) with one layer that holds /plugin.wasm. This is the
// "compat" variant of Wasm images, which Istio's WasmPlugin, Envoy Gateway, and image volumes of
// Kubernetes accept. It needs neither a daemon nor a registry. Documents about the image stand in
// the same layout as its referrers: manifests whose `subject` is the image's.
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { tar } from './tar.mjs';

const MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const CONFIG = 'application/vnd.oci.image.config.v1+json';
const LAYER = 'application/vnd.oci.image.layer.v1.tar+gzip';
const EMPTY = 'application/vnd.oci.empty.v1+json';

/**
 * @typedef {{ mediaType: string, digest: string, size: number, annotations?: object }} Descriptor
 */

/**
 * @param {string} folder is made
 * @param {Buffer} wasm
 * @param {{ version: string, description: string, license: string, name: string }} project
 * @returns {Descriptor} the image's manifest
 */
export function writeImage(folder, wasm, project) {
  const blob = blobsOf(folder);
  const layer = tar([{ name: 'plugin.wasm', data: wasm }]);
  const config = blob(
    CONFIG,
    json({
      // Image builders write this platform into such images, although it means nothing for a Wasm
      // module: some runtimes refuse a platform that is not their own.
      architecture: 'amd64',
      os: 'linux',
      created: EPOCH,
      config: { Labels: annotations(project) },
      rootfs: { type: 'layers', diff_ids: [`sha256:${sha256(layer)}`] },
      history: [{ created: EPOCH, created_by: 'COPY plugin.wasm /plugin.wasm' }],
    }),
  );
  const manifest = blob(
    MANIFEST,
    json({
      schemaVersion: 2,
      mediaType: MANIFEST,
      config,
      layers: [blob(LAYER, gzip(layer))],
      annotations: { ...annotations(project), 'module.wasm.image/variant': 'compat' },
    }),
  );
  const named = { ...manifest, annotations: { 'org.opencontainers.image.ref.name': project.version } };
  writeFileSync(join(folder, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
  writeFileSync(join(folder, 'index.json'), json({ schemaVersion: 2, mediaType: INDEX, manifests: [named] }));
  return manifest;
}

/**
 * Adds a document about an image to its layout, as a referrer (image-spec 1.1, "Guidelines for
 * Artifact Usage").
 * @param {string} folder
 * @param {Descriptor} subject
 * @param {{ mediaType: string, title: string, data: Buffer }} document
 */
export function refer(folder, subject, { mediaType, title, data }) {
  const blob = blobsOf(folder);
  const layer = { ...blob(mediaType, data), annotations: { 'org.opencontainers.image.title': title } };
  const config = blob(EMPTY, Buffer.from('{}'));
  const of = {
    schemaVersion: 2,
    mediaType: MANIFEST,
    artifactType: mediaType,
    config,
    layers: [layer],
    subject,
  };
  const manifest = { ...blob(MANIFEST, json(of)), artifactType: mediaType };
  const path = join(folder, 'index.json');
  const index = JSON.parse(readFileSync(path, 'utf8'));
  writeFileSync(path, json({ ...index, manifests: [...index.manifests, manifest] }));
}

/** @param {string} folder */
function blobsOf(folder) {
  const blobs = join(folder, 'blobs', 'sha256');
  mkdirSync(blobs, { recursive: true });
  /**
   * @param {string} mediaType
   * @param {Buffer} data
   */
  return (mediaType, data) => {
    const digest = sha256(data);
    writeFileSync(join(blobs, digest), data);
    return { mediaType, digest: `sha256:${digest}`, size: data.length };
  };
}

const EPOCH = '1970-01-01T00:00:00Z';

/** @param {{ version: string, description: string, license: string, name: string }} project */
const annotations = ({ name, version, description, license }) => ({
  'org.opencontainers.image.title': name,
  'org.opencontainers.image.version': version,
  'org.opencontainers.image.description': description,
  'org.opencontainers.image.licenses': license,
});

/** @param {object} value */
const json = (value) => Buffer.from(JSON.stringify(value));

/** @param {Buffer} data */
const sha256 = (data) => createHash('sha256').update(data).digest('hex');

/** @param {Buffer} data */
function gzip(data) {
  const zipped = gzipSync(data, { level: 9 });
  // RFC 1952: zlib writes the time 0. Byte 9 is the operating system, and 255 stands for an unknown
  // one.
  zipped[9] = 255;
  return zipped;
}
