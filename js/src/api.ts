/** What users hold: the same in Node and in the browser. */
import type { SelfCheck } from "./check.js";
import type { Progress } from "./files.js";
import type { Kind } from "./host.js";
import type { Manifest } from "./manifest.js";
import type { Codes } from "./media.js";
import type { Snapshot, Timing } from "./stream.js";

export type Backend = "webgpu" | "wasm-threads" | "wasm" | "node";

/** A backend that was tried, or passed over; `check` is there where the golden clip ran. */
export interface Attempt {
  backend: Backend;
  chosen: boolean;
  /** Why it was chosen or not, in words. */
  reason: string;
  check?: SelfCheck;
}

export interface LoadOptions {
  /** Where to begin; what fails is followed by what comes after it. `"auto"` is `"webgpu"` where that is hardware. */
  backend?: "auto" | Backend;
  /** Threads of one operator; by default the cores, but no more than 4 (Node: 1). */
  threads?: number;
  onProgress?: (progress: Progress) => void;
}

/** Calls a method of the host, wherever it lives. */
export type Call = (method: "open" | "call" | "closeStream" | "close", ...args: unknown[]) => Promise<any>;

/** The median milliseconds of encoding and decoding one frame must stay below what it lasts. */
export function isLive(check: SelfCheck, manifest: Manifest): boolean {
  return check.encoderMs + check.decoderMs < 1000 / manifest.frameRate;
}

abstract class Stream {
  /** How long the calls of the graph took that the last `push` or `flush` made. */
  timings: Timing[] = [];

  constructor(private readonly host: Call, private readonly id: number) {}

  protected async call<T extends object>(method: string, ...args: unknown[]): Promise<T> {
    const result = await this.host("call", this.id, method, ...args);
    if (result && "timings" in result) this.timings = result.timings;
    return result;
  }

  /** Begin a new stream; what was buffered is dropped. */
  async reset(): Promise<void> {
    await this.call("reset");
  }

  /** A copy of everything that this stream knows. */
  snapshot(): Promise<Snapshot> {
    return this.call<Snapshot>("snapshot");
  }

  /** Become the stream that `snapshot` was taken of. */
  async restore(snapshot: Snapshot): Promise<void> {
    await this.call("restore", snapshot);
  }

  /** Forget it. */
  async close(): Promise<void> {
    await this.host("closeStream", this.id);
  }
}

/** Samples in, codes out. */
export class EncoderStream extends Stream {
  /** Take any number of samples (the model's rate, full scale 1) and give the codes of the frames that are whole. */
  async push(samples: Float32Array): Promise<Codes> {
    return (await this.call<{ codes: Codes }>("push", samples)).codes;
  }

  /** Fill the last frame with zeros; `realSamples` is how many of the samples in `codes` are no such zeros. */
  async flush(): Promise<{ codes: Codes; realSamples: number }> {
    const { codes, realSamples } = await this.call<{ codes: Codes; realSamples: number }>("flush");
    return { codes, realSamples };
  }
}

/** Codes in, samples out. */
export class DecoderStream extends Stream {
  /** Take frames of 1 … K codebooks, another number with every call if you like, and give their samples. */
  async push(codes: Codes): Promise<Float32Array> {
    return (await this.call<{ samples: Float32Array }>("push", codes)).samples;
  }

  /** What a graph of several frames in a call holds back. */
  async flush(): Promise<Float32Array> {
    return (await this.call<{ samples: Float32Array }>("flush")).samples;
  }
}

/** One half of a variant. */
export class Half<S> {
  constructor(private readonly host: Call, private readonly kind: Kind, private readonly make: new (host: Call, id: number) => S) {}

  /** A new stream; as many as wanted. */
  async stream(): Promise<S> {
    return new this.make(this.host, await this.host("open", this.kind));
  }
}

/** A variant that was loaded and has passed its golden clip. */
export interface Codec {
  manifest: Manifest;
  encoder: Half<EncoderStream>;
  /** `null` for an encoder that was exported alone. */
  decoder: Half<DecoderStream> | null;
  backend: Backend;
  threads: number;
  check: SelfCheck;
  /** Every backend that was considered, in order. */
  attempts: Attempt[];
  /** Where the files are kept, and why not in a better place. */
  cache: { kind: string; refusals: string[] };
  /** Free everything; streams end. */
  close(): Promise<void>;
}

export function makeCodec(host: Call, manifest: Manifest, rest: Omit<Codec, "manifest" | "encoder" | "decoder" | "close">, close: () => Promise<void>): Codec {
  const decoder = manifest.graphs.decoder ? new Half(host, "decoder", DecoderStream) : null;
  return { manifest, encoder: new Half(host, "encoder", EncoderStream), decoder, ...rest, close };
}
