/** mimi-onnx in Node: graphs run in this process, on onnxruntime-node's threads. */
import { openAsBlob } from "node:fs";
import { pathToFileURL, fileURLToPath } from "node:url";
import { makeCodec, type Attempt, type Call, type Codec, type LoadOptions } from "./api.js";
import { FileCache, openCache } from "./cache.js";
import { MimiError, line } from "./errors.js";
import { fetchFile, readFiles, readManifest, type Reader } from "./files.js";
import type { Ort } from "./graph.js";
import { Host } from "./host.js";

export * from "./common.js";

const readFile: Reader = async (url, onBytes) => {
  const path = fileURLToPath(url);
  try {
    const blob = new Blob([await (await openAsBlob(path)).arrayBuffer()]);
    onBytes(blob.size);
    return blob;
  } catch (error) {
    throw new MimiError("missing", `${path} cannot be read: ${line(error)}`);
  }
};

const cache = openCache();

/** Forget the files that were fetched over http; they are kept as long as this process runs. */
export async function clear(): Promise<void> {
  await cache.clear();
}

/**
 * Open a variant: a directory, or the address of one over http. Every file is compared with its SHA-256, and the golden
 * clip has to come out. `ort` takes another onnxruntime than the installed onnxruntime-node.
 *
 * Throws `MimiError`.
 */
export async function load(directory: string | URL, options: LoadOptions & { ort?: Ort } = {}): Promise<Codec> {
  const text = String(directory).replace(/\/*$/, "/");
  const remote = /^https?:/.test(text);
  const base = remote || text.startsWith("file:") ? text : pathToFileURL(text).href.replace(/\/*$/, "/");
  const read = remote ? fetchFile : readFile;
  const kept = remote ? cache : new FileCache([]);
  const manifest = await readManifest(base, read, kept);
  const files = await readFiles(base, manifest, read, kept, options.onProgress ?? (() => undefined));
  const threads = options.threads ?? 1;
  let ort = options.ort;
  try {
    ort ??= (await import("onnxruntime-node")) as unknown as Ort;
  } catch (error) {
    throw new MimiError("backend", `onnxruntime-node is not installed (${line(error)}): npm install onnxruntime-node`);
  }
  const host = await Host.open(ort, manifest, files, { intraOpNumThreads: threads, interOpNumThreads: 1 });
  const { check } = host;
  if (!check.passed) {
    await host.close();
    throw new MimiError("backend", `onnxruntime-node computes something else than ${manifest.name} should: ${check.text}`);
  }
  const attempts: Attempt[] = [{ backend: "node", chosen: true, reason: check.text, check }];
  const call: Call = async (method, ...args) => (host[method] as any)(...args);
  const where = { kind: remote ? "memory" : "none", refusals: [] };
  return makeCodec(call, manifest, { backend: "node", threads, check, attempts, cache: where }, () => host.close());
}
