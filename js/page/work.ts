/** Keeps a track encoded and decoded: one loop for each direction, frame by frame. */
import type { Codec, DecoderStream, EncoderStream, Timing } from "../src/browser.js";
import { Track } from "./track.js";

const WARM = 12; // frames that a decoder runs before it is heard in the middle of a track
const KEPT = 1024; // times of calls

/** Milliseconds of calls, of the last ones. */
export class Times {
  private readonly values: number[] = [];
  sum = 0;
  count = 0;

  add(timings: Timing[]): void {
    for (const { frames, milliseconds } of timings) {
      this.values[this.count++ % KEPT] = milliseconds / frames;
      this.sum += milliseconds / frames;
    }
  }

  get mean(): number {
    return this.count ? this.sum / this.count : 0;
  }

  /** Half of the calls, 95 of 100 and all were at least as fast. */
  text(): string {
    if (!this.count) return "–";
    const sorted = [...this.values].sort((a, b) => a - b);
    const at = (part: number) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]!.toFixed(1);
    return `p50 ${at(0.5)}, p95 ${at(0.95)}, max ${at(1)}`;
  }
}

/** Decodes a track with the number of codebooks that is wanted now, first what is about to be heard. */
export class Decoding {
  /** Whether all that is there is decoded as wanted. */
  idle = false;
  private position = 0;
  private passes: { from: number; keep: number }[] = [{ from: 0, keep: 0 }];
  private stopped = false;
  private wake: () => void = () => undefined;

  constructor(
    private readonly stream: DecoderStream,
    private readonly track: Track,
    public codebooks: number,
    private readonly times: Times,
    private readonly onFrame: (frame: number) => void,
  ) {}

  /** More codes are there. */
  grown(): void {
    this.idle = false;
    this.wake();
  }

  /** Use another number of codebooks; `cursor` is the frame that is heard. A live track goes on at its end. */
  choose(codebooks: number, cursor: number, live: boolean): void {
    this.codebooks = codebooks;
    if (!live) this.again(cursor);
  }

  /** What is heard is not decoded as wanted: begin there, and put it right from the beginning afterwards. */
  again(cursor: number): void {
    const begin = Math.max(0, cursor - WARM);
    this.passes = begin ? [{ from: begin, keep: cursor }, { from: 0, keep: 0 }] : [{ from: 0, keep: 0 }];
    this.position = -1;
    this.grown();
  }

  /** Old frames were forgotten. */
  shift(frames: number): void {
    if (this.position > 0) this.position = Math.max(0, this.position - frames);
    for (const pass of this.passes) Object.assign(pass, { from: 0, keep: Math.max(0, pass.keep - frames) });
  }

  stop(): void {
    this.stopped = true;
    this.wake();
  }

  private async more(): Promise<void> {
    this.idle = true;
    await new Promise<void>((resolve) => (this.wake = resolve));
  }

  async run(): Promise<void> {
    while (!this.stopped) {
      const pass = this.passes[0]!;
      if (this.position < 0) {
        await this.stream.reset();
        this.position = this.passes[0]!.from; // wishes may have come meanwhile
        continue;
      }
      if (this.position >= this.track.frames) {
        if (this.passes.length > 1) {
          this.passes.shift();
          this.position = -1;
        } else await this.more();
        continue;
      }
      const [frame, codebooks, passes, first] = [this.position, this.codebooks, this.passes, this.track.frameCodes(this.position)[0]];
      const data = this.track.frameCodes(frame).slice(0, codebooks);
      const samples = await this.stream.push({ data, codebooks, frames: 1 });
      this.times.add(this.stream.timings);
      if (passes !== this.passes || this.position < 0) continue; // overtaken by a wish
      const now = this.position; // old frames may have been forgotten meanwhile
      if (now >= pass.keep && this.track.frameCodes(now)[0] === first) {
        this.track.decode(now, samples, codebooks);
        this.onFrame(now);
      }
      this.position = now + 1;
    }
    await this.stream.close();
  }
}

/** Encodes samples as they come, one frame a call; `finish` pads the last one. */
export class Encoding {
  private queue: Promise<unknown> = Promise.resolve();
  /** Frames that wait. */
  waiting = 0;
  stopped = false;

  private constructor(
    private readonly stream: EncoderStream,
    private readonly frameSize: number,
    private readonly times: Times,
    private readonly onFrame: (codes: Int32Array, samples: Float32Array, real: number) => void,
  ) {}

  static async open(codec: Codec, times: Times, onFrame: Encoding["onFrame"]): Promise<Encoding> {
    return new Encoding(await codec.encoder.stream(), codec.manifest.frameSize, times, onFrame);
  }

  /** One frame of samples, or fewer at the end. */
  push(samples: Float32Array): Promise<void> {
    this.waiting++;
    const work = async () => {
      this.waiting--;
      if (this.stopped) return;
      const whole = samples.length === this.frameSize;
      let codes = await this.stream.push(samples);
      if (!whole) ({ codes } = await this.stream.flush());
      this.times.add(this.stream.timings);
      if (codes.frames && !this.stopped) this.onFrame(codes.data, samples, samples.length);
    };
    const done = this.queue.then(work);
    this.queue = done.catch(() => undefined);
    return done;
  }

  async close(): Promise<void> {
    await this.queue;
    await this.stream.close();
  }
}
