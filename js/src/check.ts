/** The golden clip: what a variant must give anywhere. `mimi-export verify` replays the same clip. */
import type { Graph } from "./graph.js";
import { MimiError, line } from "./errors.js";
import { GOLDEN, type Manifest } from "./manifest.js";
import { parse } from "./safetensors.js";
import { DecoderCore, EncoderCore, cut, type Timing } from "./stream.js";

/** What came of a replay; `snrDb` is of the decoded audio, `null` without a decoder; times are medians of a frame. */
export interface SelfCheck {
  passed: boolean;
  codesEqual: number;
  codesTotal: number;
  codesLeast: number;
  snrDb: number | null;
  snrLeast: number;
  encoderMs: number;
  decoderMs: number;
  /** In words: "codes 304 of 304 equal, 118 dB". */
  text: string;
}

// By precision: fraction of codes that must be equal, and SNR in dB of the decoded audio, as in `mimi-export verify`.
const TOLERANCES: Record<string, [number, number]> = { fp32: [0.97, 80], fp16: [0.9, 50], int8: [0.5, 20] };

export async function selfCheck(graphs: { encoder: Graph; decoder?: Graph }, manifest: Manifest, golden: Uint8Array): Promise<SelfCheck> {
  const refuse = (why: string): never => {
    throw new MimiError("manifest", `${GOLDEN} of ${manifest.name} ${why}; export the variant again`);
  };
  const [codesLeast, snrLeast] = TOLERANCES[manifest.precision] ?? refuse(`is of the unknown precision ${manifest.precision}`);
  let tensors;
  try {
    ({ tensors } = parse(golden));
  } catch (error) {
    return refuse(line(error));
  }
  const { audio = refuse("holds no audio"), codes: wanted = refuse("holds no codes"), decoded } = tensors;
  const samples = Float32Array.from(new Int16Array(audio.bytes.buffer), (value) => value / 32768);
  const expected = new Int32Array(wanted.bytes.buffer);
  const frames = samples.length / manifest.frameSize;
  const books = manifest.num_codebooks;
  if (!Number.isInteger(frames) || expected.length !== frames * books) refuse("does not fit the variant");

  const unit = manifest.frames_per_call ?? 1;
  const encoder = new EncoderCore(graphs.encoder, manifest);
  const encoding: Timing[] = [];
  let codesEqual = 0;
  for (let frame = 0; frame < frames; frame += unit) {
    const { codes, timings } = await encoder.push(samples.subarray(frame * manifest.frameSize, (frame + unit) * manifest.frameSize));
    encoding.push(...timings);
    codes.data.forEach((code, i) => {
      codesEqual += Number(code === expected[Math.floor(i / unit) * frames + frame + (i % unit)]);
    });
  }
  let snrDb: number | null = null;
  const decoding: Timing[] = [];
  if (graphs.decoder) {
    const reference = new Float32Array((decoded ?? refuse("holds no decoded audio")).bytes.buffer);
    const decoder = new DecoderCore(graphs.decoder, manifest);
    let [signal, error] = [0, 0];
    for (let frame = 0; frame < frames; frame += unit) {
      const piece = cut({ data: expected, codebooks: books, frames }, frame, frame + unit);
      const { samples: found, timings } = await decoder.push(piece);
      decoding.push(...timings);
      found.forEach((value, i) => {
        const right = reference[frame * manifest.frameSize + i] ?? 0;
        signal += right * right;
        error += (value - right) ** 2;
      });
    }
    snrDb = error === 0 ? Infinity : 10 * Math.log10(signal / error);
  }
  const codesTotal = expected.length;
  const passed = codesEqual >= codesLeast * codesTotal && (snrDb === null || snrDb >= snrLeast); // NaN does not pass
  const level = snrDb === null ? "" : Number.isFinite(snrDb) ? `, ${snrDb.toFixed(0)} dB` : snrDb > 0 ? ", audio exact" : ", audio lost";
  const text = `codes ${codesEqual} of ${codesTotal} equal${level}`;
  const [encoderMs, decoderMs] = [encoding, decoding].map(median) as [number, number];
  return { passed, codesEqual, codesTotal, codesLeast, snrDb, snrLeast, encoderMs, decoderMs, text };
}

/** Milliseconds of a frame in the middle of all calls; 0 where there were none. */
function median(timings: Timing[]): number {
  const sorted = timings.map(({ frames, milliseconds }) => milliseconds / frames).sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? 0;
}
