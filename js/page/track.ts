/** What is heard and seen: samples, codes and what is decoded from them, frame by frame. */
import type { Codes } from "../src/browser.js";
import { aside } from "./aside.js";
import { BANDS, HOP, PEAKS, SIZE, difference } from "./mel.js";
import { HEAT, MAP, Strip } from "./pictures.js";

const MOST_SECONDS = 600;
const DROP = 512; // frames that go at once from the beginning of a long recording: whole tiles of every strip

export class Track {
  frames = 0;
  /** Real samples; the last frame may be longer. */
  samples = 0;
  /** With how many codebooks each frame was decoded, 0 for not at all. */
  made: Uint8Array;
  original: Float32Array;
  decoded: Float32Array;
  readonly peaks: [Float32Array, Float32Array];
  readonly strips: { a: Strip; b: Strip; d: Strip; codes: Strip };
  /** Frames whose pictures are being made. */
  drawing = 0;
  /** Frames at the beginning that were forgotten. */
  gone = 0;
  private codes: Int32Array;
  private readonly columns: [Uint8Array, Uint8Array];

  /** `most` is frames; `onDrawn` after any picture has grown, or with what went wrong. */
  constructor(
    readonly rate: number,
    readonly frameSize: number,
    readonly codebooks: number,
    readonly codebookSize: number,
    readonly most: number,
    private readonly onDrawn: (error?: unknown) => void,
  ) {
    this.made = new Uint8Array(most);
    this.original = new Float32Array(most * frameSize);
    this.decoded = new Float32Array(most * frameSize);
    this.codes = new Int32Array(most * codebooks);
    const bins = Math.ceil((most * frameSize * PEAKS) / rate);
    this.peaks = [new Float32Array(2 * bins), new Float32Array(2 * bins)];
    this.columns = [new Uint8Array(((most * frameSize) / HOP) * BANDS), new Uint8Array(((most * frameSize) / HOP) * BANDS)];
    this.strips = { a: new Strip(BANDS, HEAT), b: new Strip(BANDS, HEAT), d: new Strip(BANDS, HEAT), codes: new Strip(codebooks, MAP) };
  }

  static most(rate: number, frameSize: number, seconds = MOST_SECONDS): number {
    return Math.ceil((Math.min(seconds, MOST_SECONDS) * rate) / frameSize);
  }

  get seconds(): number {
    return this.samples / this.rate;
  }

  /** Codes of one frame, all codebooks. */
  frameCodes(frame: number): Int32Array {
    return this.codes.subarray(frame * this.codebooks, (frame + 1) * this.codebooks);
  }

  /** The first codebooks of all frames. */
  codesOf(codebooks: number): Codes {
    const { frames, codes } = this;
    const data = new Int32Array(codebooks * frames);
    for (let i = 0; i < data.length; i++) data[i] = codes[(i % frames) * this.codebooks + Math.floor(i / frames)]!;
    return { data, codebooks, frames };
  }

  /** Append a frame; `real` of its samples are no padding. `original` may lack: codes from a file. */
  add(codes: Int32Array, original: Float32Array | null, real = this.frameSize): void {
    const frame = this.frames++;
    this.samples = frame * this.frameSize + real;
    this.codes.set(codes, frame * this.codebooks);
    this.strips.codes.put(frame, codes.map((code) => (255 * code) / (this.codebookSize - 1)));
    this.made[frame] = 0;
    if (!original) return;
    this.original.set(original.subarray(0, this.frameSize), frame * this.frameSize);
    this.draw(0, frame).catch(this.onDrawn);
  }

  /** What `codebooks` of a frame's codes sound like. */
  decode(frame: number, samples: Float32Array, codebooks: number): void {
    this.decoded.set(samples, frame * this.frameSize);
    this.made[frame] = codebooks;
    this.draw(1, frame).catch(this.onDrawn);
  }

  private async draw(side: 0 | 1, frame: number): Promise<void> {
    this.drawing++;
    const { rate, frameSize, gone } = this;
    const first = frame * frameSize;
    const before = Math.min(first, SIZE);
    const samples = (side ? this.decoded : this.original).slice(first - before, first + frameSize);
    const { peaks, columns } = await aside("examine", [samples, before, rate], [samples]).finally(() => this.drawing--);
    const start = first - (this.gone - gone) * frameSize; // old frames may have been forgotten meanwhile
    if (start < 0) return;
    this.peaks[side].set(peaks, (2 * start * PEAKS) / rate);
    this.columns[side].set(columns, (start / HOP) * BANDS);
    for (let column = start / HOP; column < (start + frameSize) / HOP; column++) {
      const [a, b] = this.columns.map((all) => all.slice(column * BANDS, (column + 1) * BANDS).reverse()) as [Uint8Array, Uint8Array];
      this.strips[side ? "b" : "a"].put(column, side ? b : a);
      if (side) this.strips.d.put(column, difference(a, b));
    }
    this.onDrawn();
  }

  /** Forget the oldest frames of a full recording; gives how many. */
  makeRoom(): number {
    if (this.frames < this.most) return 0;
    const samples = DROP * this.frameSize;
    for (const array of [this.original, this.decoded]) array.copyWithin(0, samples);
    this.codes.copyWithin(0, DROP * this.codebooks);
    this.made.copyWithin(0, DROP);
    for (const peaks of this.peaks) peaks.copyWithin(0, (2 * samples * PEAKS) / this.rate);
    for (const columns of this.columns) columns.copyWithin(0, (samples / HOP) * BANDS);
    for (const strip of [this.strips.a, this.strips.b, this.strips.d]) strip.drop(samples / HOP);
    this.strips.codes.drop(DROP);
    this.gone += DROP;
    this.frames -= DROP;
    this.samples -= samples;
    return DROP;
  }
}
