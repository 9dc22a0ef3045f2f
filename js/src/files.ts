/** A variant's files: fetched with progress, compared with the manifest, kept in the cache. */
import { FileCache } from "./cache.js";
import { MimiError, line } from "./errors.js";
import { neededFiles, parseManifest, type Manifest } from "./manifest.js";

/** Bytes of all files together; `cached` counts those that needed no network. */
export interface Progress {
  file: string;
  loaded: number;
  cached: number;
  total: number;
}

/** Reads one file below a variant; `onBytes` is told what came in since it was last told. */
export type Reader = (url: string, onBytes: (count: number) => void) => Promise<Blob>;

/** Read over http. */
export const fetchFile: Reader = async (url, onBytes) => {
  let response;
  try {
    response = await fetch(url, { cache: "no-cache" });
  } catch (error) {
    throw new MimiError("network", `${url} cannot be reached (${line(error)}); is there a connection?`);
  }
  if (!response.ok) throw new MimiError("missing", `${url} is not there: the server says ${response.status}`);
  const parts: BlobPart[] = [];
  try {
    const reader = response.body!.getReader();
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
      parts.push(next.value as BlobPart);
      onBytes(next.value.length);
    }
  } catch (error) {
    throw new MimiError("network", `the connection broke while ${url} came in (${line(error)}); load it again`);
  }
  return new Blob(parts);
};

/** The manifest as the server has it now; without a connection the one of the last time. */
export async function readManifest(base: string, read: Reader, cache: FileCache): Promise<Manifest> {
  const url = `${base}manifest.json`;
  const key = { url, version: "latest" };
  let blob: Blob;
  try {
    blob = await read(url, () => undefined);
  } catch (error) {
    const kept = error instanceof MimiError && error.fault === "network" ? await cache.get(key) : undefined;
    if (!kept) throw error;
    blob = kept;
  }
  const manifest = parseManifest(await blob.text(), url);
  await cache.put(key, blob);
  return manifest;
}

/** The files that a variant needs, each with the manifest's SHA-256. */
export async function readFiles(
  base: string, manifest: Manifest, read: Reader, cache: FileCache, onProgress: (progress: Progress) => void,
): Promise<Record<string, Blob>> {
  const names = neededFiles(manifest);
  const total = names.reduce((sum, name) => sum + manifest.files[name]!.bytes, 0);
  const files: Record<string, Blob> = {};
  let [loaded, cached] = [0, 0];
  for (const name of names) {
    const { bytes, sha256 } = manifest.files[name]!;
    const key = { url: base + name, version: sha256 };
    const kept = await cache.get(key);
    if (kept && (await hash(kept)) === sha256) {
      files[name] = kept;
      loaded += bytes;
      cached += bytes;
    } else {
      if (kept) await cache.delete(key);
      const before = loaded;
      const blob = await read(key.url, (count) => {
        loaded = Math.min(loaded + count, before + bytes);
        onProgress({ file: name, loaded, cached, total });
      });
      const found = blob.size === bytes ? await hash(blob) : `${blob.size} bytes`;
      if (found !== sha256) {
        const got = blob.size === bytes ? `its SHA-256 begins ${found.slice(0, 12)}` : `it has ${blob.size} bytes`;
        const wanted = blob.size === bytes ? sha256.slice(0, 12) : bytes;
        throw new MimiError("hash", `${name} was changed on the way: ${got}, the manifest says ${wanted}; it is not used`);
      }
      loaded = before + bytes;
      await cache.put(key, blob);
      files[name] = blob;
    }
    onProgress({ file: name, loaded, cached, total });
  }
  return files;
}

async function hash(blob: Blob): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new MimiError("backend", "files cannot be checked here: open this page over https, or from localhost");
  }
  const digest = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
