/** The Worker: fetches and checks files, runs graphs. One backend in the life of a Worker. */
import type { Ort } from "./graph.js";
import { openCache } from "./cache.js";
import { MimiError, line } from "./errors.js";
import { fetchFile, readFiles, readManifest } from "./files.js";
import { Host } from "./host.js";
import type { Manifest } from "./manifest.js";
import { answer } from "./remote.js";

export interface StartOptions {
  backend: "webgpu" | "wasm-threads" | "wasm";
  threads: number;
  /** The folder of onnxruntime-web's files, or nothing to leave it to the bundler. */
  runtime?: string;
}

let host: Host | undefined;

async function importRuntime(webgpu: boolean, folder?: string): Promise<Ort & { env: any }> {
  if (folder) return import(/* @vite-ignore */ /* webpackIgnore: true */ `${folder}ort.${webgpu ? "webgpu" : "wasm"}.min.mjs`);
  return (webgpu ? import("onnxruntime-web/webgpu") : import("onnxruntime-web/wasm")) as any;
}

/** What is not asked of the host. */
const methods: Record<string, (id: number, ...args: any[]) => unknown> = {
  async fetch(id, base: string) {
    const cache = openCache();
    const manifest = await readManifest(base, fetchFile, cache);
    const files = await readFiles(base, manifest, fetchFile, cache, (progress) => postMessage({ id, progress }));
    return { manifest, files, cache: { kind: cache.kind, refusals: cache.refusals } };
  },

  async start(_id, manifest: Manifest, files: Record<string, Blob>, { backend, threads, runtime }: StartOptions) {
    let ort;
    try {
      ort = await importRuntime(backend === "webgpu", runtime);
    } catch (error) {
      throw new MimiError("backend", `onnxruntime-web does not load: ${line(error)}`);
    }
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    if (runtime) ort.env.wasm.wasmPaths = runtime;
    const provider = backend === "webgpu" ? "webgpu" : "wasm";
    host = await Host.open(ort, manifest, files, { executionProviders: [provider], logSeverityLevel: 3 });
    return host.check;
  },

  clear: () => openCache().clear(),
};

// One graph at a time: onnxruntime-web cannot run two.
let queue: Promise<unknown> = Promise.resolve();

answer((id, method, args) => {
  const own = methods[method];
  const done = queue.then(() => (own ? own(id, ...args) : (host as any)[method](...args)));
  queue = done.catch(() => undefined);
  return done;
});
