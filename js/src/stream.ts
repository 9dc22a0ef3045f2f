/** Streams of samples and of codes, in pieces of any size: what runs beside onnxruntime. */
import type { Tensor } from "onnxruntime-common";
import { MimiError } from "./errors.js";
import { Graph, StreamState, type States } from "./graph.js";
import type { Manifest } from "./manifest.js";
import { joinCodes, type Codes } from "./media.js";

const MAX_FRAMES_PER_CALL = 32; // more gain no speed, and attention memory grows with the square

/** A stream at one moment, to `restore` it or another one of the same graph. */
export interface Snapshot {
  states: States;
  pending: Float32Array | Codes;
  count: number;
  ended: boolean;
}

/** How long each call of the graph took, and how many frames it had. */
export interface Timing {
  frames: number;
  milliseconds: number;
}

abstract class Stream<Piece extends Float32Array | Codes> {
  protected abstract pending: Piece;
  protected count = 0;
  protected readonly state: StreamState;
  private ended = false;

  constructor(protected readonly graph: Graph, protected readonly manifest: Manifest) {
    this.state = new StreamState(graph);
  }

  protected abstract empty(): Piece;

  reset(): void {
    this.state.restore(this.graph.initialStates());
    this.pending = this.empty();
    this.count = 0;
    this.ended = false;
  }

  snapshot(): Snapshot {
    const pending = structuredClone(this.pending) as Piece;
    return { states: this.state.snapshot(), pending, count: this.count, ended: this.ended };
  }

  restore(snapshot: Snapshot): void {
    this.state.restore(snapshot.states);
    this.pending = structuredClone(snapshot.pending) as Piece;
    this.count = snapshot.count;
    this.ended = snapshot.ended;
  }

  /** Frames in each call that `frames` whole frames make; a ring's calls have one size. */
  protected calls(frames: number): number[] {
    const most = this.manifest.frames_per_call ?? MAX_FRAMES_PER_CALL;
    const calls = Array<number>(Math.floor(frames / most)).fill(most);
    if (!this.manifest.frames_per_call && frames % most) calls.push(frames % most);
    return calls;
  }

  protected checkOpen(): void {
    if (this.ended) throw new MimiError("stream", "this stream was flushed; call reset() to begin a new one");
  }

  protected end(): void {
    this.checkOpen();
    this.ended = true;
  }

  protected async call(data: Tensor, frames: number, timings: Timing[]): Promise<Tensor> {
    const begin = performance.now();
    const output = await this.state.step(data);
    timings.push({ frames, milliseconds: performance.now() - begin });
    return output;
  }
}

/** Samples in, codes out. */
export class EncoderCore extends Stream<Float32Array> {
  protected pending = this.empty();

  protected empty(): Float32Array {
    return new Float32Array(0);
  }

  async push(samples: Float32Array): Promise<{ codes: Codes; timings: Timing[] }> {
    this.checkOpen();
    const bad = samples.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) throw new MimiError("audio", `sample ${bad} is ${samples[bad]}; remove NaN and infinite samples first`);
    this.count += samples.length;
    return this.run(samples);
  }

  /** Fill the last frame with zeros; `realSamples` of those that the codes stand for are no such zeros. */
  async flush(): Promise<{ codes: Codes; realSamples: number; timings: Timing[] }> {
    this.end();
    const realSamples = this.pending.length;
    const { frameSize, frames_per_call } = this.manifest;
    const unit = frameSize * (frames_per_call ?? 1);
    const result = await this.run(new Float32Array((unit - (realSamples % unit)) % unit));
    const { codes } = result;
    const frames = Math.min(codes.frames, Math.ceil(realSamples / frameSize)); // a ring's call may have more
    const kept = Array.from({ length: codes.codebooks }, (_, b) => [...codes.data.subarray(b * codes.frames, b * codes.frames + frames)]);
    return { ...result, codes: { ...codes, data: Int32Array.from(kept.flat()), frames }, realSamples };
  }

  private async run(samples: Float32Array): Promise<{ codes: Codes; timings: Timing[] }> {
    const { frameSize, num_codebooks: codebooks } = this.manifest;
    const all = new Float32Array(this.pending.length + samples.length);
    all.set(this.pending);
    all.set(samples, this.pending.length);
    const parts: Codes[] = [];
    const timings: Timing[] = [];
    let at = 0;
    for (const frames of this.calls(Math.floor(all.length / frameSize))) {
      const data = all.slice(at, at + frames * frameSize);
      const output = await this.call(new this.graph.ort.Tensor("float32", data, [1, 1, data.length]), frames, timings);
      parts.push({ data: Int32Array.from(output.data as BigInt64Array, Number), codebooks, frames });
      at += data.length;
      this.pending = all.slice(at);
    }
    this.pending = all.slice(at);
    return { codes: joinCodes(parts, codebooks), timings };
  }
}

/** Codes in, samples out. */
export class DecoderCore extends Stream<Codes> {
  protected pending = this.empty();

  protected empty(): Codes {
    return { data: new Int32Array(0), codebooks: 0, frames: 0 };
  }

  async push(codes: Codes): Promise<{ samples: Float32Array; timings: Timing[] }> {
    this.checkOpen();
    this.check(codes);
    this.count += codes.frames;
    return this.run(codes);
  }

  /** The samples of frames that only a ring of several frames a call keeps. */
  async flush(): Promise<{ samples: Float32Array; timings: Timing[] }> {
    this.end();
    const { codebooks, frames } = this.pending;
    const unit = this.manifest.frames_per_call ?? 1;
    const filling = (unit - (frames % unit)) % unit;
    const { samples, timings } = await this.run({ data: new Int32Array(codebooks * filling), codebooks, frames: filling });
    return { samples: samples.slice(0, frames * this.manifest.frameSize), timings };
  }

  private check({ data, codebooks, frames }: Codes): void {
    const refuse = (why: string): never => {
      throw new MimiError("codes", why);
    };
    const { num_codebooks: most, geometry } = this.manifest;
    if (!(codebooks >= 1 && codebooks <= most)) refuse(`codes have ${codebooks} codebooks, this decoder takes 1 to ${most}`);
    if (data.length !== codebooks * frames) refuse(`${data.length} codes are no ${codebooks} codebooks of ${frames} frames`);
    const bad = data.findIndex((code) => !(code >= 0 && code < geometry.codebook_size));
    if (bad >= 0) {
      const place = `codebook ${Math.floor(bad / frames)}, frame ${bad % frames}`;
      refuse(`code ${data[bad]} at ${place} is out of range, expected 0 to ${geometry.codebook_size - 1}`);
    }
    if (this.pending.frames && this.pending.codebooks !== codebooks) {
      refuse(`got ${codebooks} codebooks while frames of ${this.pending.codebooks} are buffered`);
    }
  }

  private async run(codes: Codes): Promise<{ samples: Float32Array; timings: Timing[] }> {
    const { codebooks } = codes;
    const all = this.pending.frames ? joinCodes([this.pending, codes], codebooks) : codes;
    const rest = (at: number) => cut(all, at, all.frames);
    const calls = this.calls(all.frames);
    const samples = new Float32Array(calls.reduce((sum, frames) => sum + frames, 0) * this.manifest.frameSize);
    const timings: Timing[] = [];
    let at = 0;
    for (const frames of calls) {
      const data = BigInt64Array.from(cut(all, at, at + frames).data, BigInt);
      const output = await this.call(new this.graph.ort.Tensor("int64", data, [1, codebooks, frames]), frames, timings);
      samples.set(output.data as Float32Array, at * this.manifest.frameSize);
      at += frames;
      this.pending = rest(at);
    }
    this.pending = rest(at);
    return { samples, timings };
  }
}

/** Frames `first` to `last` (without it) of some codes. */
export function cut({ data, codebooks, frames }: Codes, first: number, last: number): Codes {
  const part = new Int32Array(codebooks * (last - first));
  for (let book = 0; book < codebooks; book++) {
    part.set(data.subarray(book * frames + first, book * frames + last), book * (last - first));
  }
  return { data: part, codebooks, frames: last - first };
}
