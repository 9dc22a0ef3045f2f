/** mimi-onnx in the browser: graphs run in a Worker, on the first backend that gives what the golden clip says. */
import { isLive, makeCodec, type Attempt, type Call, type Codec, type LoadOptions } from "./api.js";
import type { SelfCheck } from "./check.js";
import { MimiError, line } from "./errors.js";
import type { Manifest } from "./manifest.js";
import { Remote } from "./remote.js";
import type { StartOptions } from "./worker.js";

export * from "./common.js";

export interface BrowserOptions extends LoadOptions {
  /** Folder with the files of onnxruntime-web's `dist`, on this page's origin; without it your bundler finds them. */
  runtime?: string | URL;
  /** Makes the Worker, for bundlers that do not understand `new Worker(new URL("./worker.js", import.meta.url))`. */
  worker?: () => Worker;
}

type Name = StartOptions["backend"];
const ORDER: Name[] = ["webgpu", "wasm-threads", "wasm"];
const WORDS: Record<Name, string> = { webgpu: "WebGPU", "wasm-threads": "WebAssembly with threads", wasm: "WebAssembly" };
const MOST_THREADS = 4;

const open = ({ worker }: Pick<BrowserOptions, "worker">) =>
  new Remote(worker ? worker() : new Worker(new URL("./worker.js", import.meta.url), { type: "module" }));

/** Why a backend cannot be tried at all here, or nothing. */
async function obstacle(backend: Name, threads: number, asked: boolean): Promise<string | undefined> {
  if (backend === "wasm") return undefined;
  if (backend === "wasm-threads") {
    if (!globalThis.crossOriginIsolated) return "this page is not isolated from other origins (headers COOP and COEP)";
    return threads > 1 ? undefined : "one thread was asked for, or there is one core";
  }
  const gpu = (navigator as any).gpu;
  if (!gpu) return "this browser has no WebGPU";
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter) return "there is no graphics processor that the browser may use";
  const software = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
  return software && !asked ? "this browser's WebGPU is computed by the processor" : undefined;
}

/** Forget all files that were got. */
export async function clear(options: Pick<BrowserOptions, "worker"> = {}): Promise<void> {
  const remote = open(options);
  await remote.ask("clear", []);
  remote.end();
}

/**
 * Open a variant by the address of its directory. Files are compared with their SHA-256 and kept in the browser. The
 * first backend whose golden clip comes out, faster than real time, is taken; if none is that fast, the fastest.
 *
 * Throws `MimiError`.
 */
export async function load(url: string | URL, options: BrowserOptions = {}): Promise<Codec> {
  const base = new URL(String(url).replace(/\/*$/, "/"), document.baseURI).href;
  const runtime = options.runtime && new URL(String(options.runtime).replace(/\/*$/, "/"), document.baseURI).href;
  const wanted = options.backend ?? "auto";
  const begin = Math.max(0, ORDER.indexOf(wanted as Name));
  const most = options.threads ?? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
  const attempts: Attempt[] = [];
  let best: { remote: Remote; attempt: Attempt; check: SelfCheck; threads: number } | undefined;
  let remote = open(options);
  let got: { manifest: Manifest; files: Record<string, Blob>; cache: Codec["cache"] };
  try {
    got = await remote.ask("fetch", [base], options.onProgress);
    for (const backend of ORDER.slice(begin)) {
      const attempt: Attempt = { backend, chosen: false, reason: "" };
      attempts.push(attempt);
      const why = await obstacle(backend, most, wanted === backend);
      if (why) {
        attempt.reason = why;
        continue;
      }
      const threads = backend === "wasm-threads" ? most : 1;
      try {
        const start: StartOptions = { backend, threads, ...(runtime ? { runtime } : {}) };
        const check: SelfCheck = (attempt.check = await remote.ask("start", [got.manifest, got.files, start]));
        const speed = `${(check.encoderMs + check.decoderMs).toFixed(1)} ms a frame`;
        if (!check.passed) attempt.reason = `it computes something else than it should: ${check.text}`;
        else if (isLive(check, got.manifest)) attempt.reason = `${check.text}, ${speed}`;
        else attempt.reason = `right, but slower than real time: ${check.text}, ${speed}`;
        const faster = !best || check.encoderMs + check.decoderMs < best.check.encoderMs + best.check.decoderMs;
        if (check.passed && faster) {
          best?.remote.end();
          best = { remote, attempt, check, threads };
          if (isLive(check, got.manifest)) break;
          remote = open(options);
          continue;
        }
      } catch (error) {
        attempt.reason = line(error);
      }
      remote.end();
      remote = open(options);
    }
  } finally {
    if (remote !== best?.remote) remote.end();
  }
  if (!best) {
    const tried = attempts.map(({ backend, reason }) => `${WORDS[backend as Name]}: ${reason}`).join("; ");
    throw new MimiError("backend", `nothing here computes ${got.manifest.name} as it should. ${tried}`);
  }
  best.attempt.chosen = true;
  const chosen = best;
  const call: Call = (method, ...args) => chosen.remote.ask(method, args);
  const rest = { backend: chosen.attempt.backend, threads: chosen.threads, check: chosen.check, attempts, cache: got.cache };
  return makeCodec(call, got.manifest, rest, async () => chosen.remote.end());
}
