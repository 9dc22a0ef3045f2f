/** Files that the Python package reads and writes: WAV, and codes as safetensors. */
import { MimiError, line } from "./errors.js";
import type { Manifest } from "./manifest.js";
import { parse, serialize } from "./safetensors.js";

/** Codes of `frames` frames: `data[book * frames + frame]`. */
export interface Codes {
  data: Int32Array;
  codebooks: number;
  frames: number;
}

/** The first `codebooks` of some codes. */
export function firstCodebooks(codes: Codes, codebooks: number): Codes {
  return { data: codes.data.slice(0, codebooks * codes.frames), codebooks, frames: codes.frames };
}

/** Codes after each other; all have the same number of codebooks. */
export function joinCodes(parts: Codes[], codebooks: number): Codes {
  const frames = parts.reduce((sum, part) => sum + part.frames, 0);
  const data = new Int32Array(codebooks * frames);
  let at = 0;
  for (const part of parts) {
    for (let book = 0; book < codebooks; book++) {
      data.set(part.data.subarray(book * part.frames, (book + 1) * part.frames), book * frames + at);
    }
    at += part.frames;
  }
  return { data, codebooks, frames };
}

/** A file of codes (`.safetensors`) as `mimi-export encode` writes it; `samples` is how many are real. */
export function writeCodes(codes: Codes, manifest: Manifest, samples: number): Uint8Array {
  const values = BigInt64Array.from(codes.data, BigInt);
  return serialize("codes", "I64", [1, codes.codebooks, codes.frames], new Uint8Array(values.buffer), {
    sampling_rate: String(manifest.geometry.sampling_rate),
    frame_size: String(manifest.frameSize),
    num_samples: String(samples),
    model: manifest.source.model,
  });
}

const INTEGERS: Record<string, any> = {
  I64: BigInt64Array, I32: Int32Array, U32: Uint32Array, I16: Int16Array, U16: Uint16Array, I8: Int8Array, U8: Uint8Array,
};

/** Read a file of codes of one channel; `samples` is how many of its samples are real, as far as it says. */
export function readCodes(file: Uint8Array): Codes & { samples?: number } {
  const refuse = (why: string): never => {
    throw new MimiError("codes", `the file of codes ${why}`);
  };
  let content;
  try {
    content = parse(file);
  } catch (error) {
    return refuse(line(error));
  }
  const tensor = content.tensors.codes ?? refuse("holds no tensor called codes");
  const kind = INTEGERS[tensor.dtype] ?? refuse(`holds ${tensor.dtype}, expected integers`);
  const [channels, codebooks = 0, frames = 0] = tensor.shape;
  if (tensor.shape.length !== 3 || channels !== 1 || codebooks < 1 || frames < 1) {
    refuse(`has shape ${JSON.stringify(tensor.shape)}, expected [1, codebooks, frames]`);
  }
  if (tensor.bytes.length !== codebooks * frames * kind.BYTES_PER_ELEMENT) refuse("does not fill its bytes");
  const values = new kind(tensor.bytes.buffer);
  const data = Int32Array.from(values as Iterable<number | bigint>, Number);
  const samples = Number(content.metadata.num_samples);
  return { data, codebooks, frames, ...(samples > 0 ? { samples } : {}) };
}

/** A WAV file of 16-bit mono samples; what is beyond full scale is cut. */
export function writeWav(samples: Float32Array, rate: number): Uint8Array {
  const file = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at: number, word: string) => [...word].forEach((c, i) => file.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  file.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  file.setUint32(16, 16, true);
  file.setUint16(20, 1, true);
  file.setUint16(22, 1, true);
  file.setUint32(24, rate, true);
  file.setUint32(28, 2 * rate, true);
  file.setUint16(32, 2, true);
  file.setUint16(34, 16, true);
  text(36, "data");
  file.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => file.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(value * 32768))), true));
  return new Uint8Array(file.buffer);
}

/** Read a WAV file of integers (16, 24, 32 bits) or floats; channels are averaged, the rate stays. */
export function readWav(bytes: Uint8Array): { samples: Float32Array; rate: number } {
  const refuse = (why: string): never => {
    throw new MimiError("audio", `the WAV file ${why}`);
  };
  const file = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length < 12 || word(0) !== "RIFF" || word(8) !== "WAVE") refuse("has no RIFF header");
  let format: { kind: number; channels: number; rate: number; bits: number } | undefined;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = file.getUint32(at + 4, true);
    const start = at + 8;
    if (word(at) === "fmt ") {
      if (start + 16 > bytes.length) break;
      const tag = file.getUint16(start, true);
      const kind = tag === 0xfffe && size >= 26 && start + 26 <= bytes.length ? file.getUint16(start + 24, true) : tag;
      const [channels, rate, bits] = [file.getUint16(start + 2, true), file.getUint32(start + 4, true), file.getUint16(start + 14, true)];
      format = { kind, channels, rate, bits };
    } else if (word(at) === "data" && format) {
      const { kind, channels, rate, bits } = format;
      const formats: Record<string, (at: number) => number> = {
        "1/16": (at: number) => file.getInt16(at, true) / 2 ** 15,
        "1/24": (at: number) => ((file.getUint16(at, true) << 8) | (file.getUint8(at + 2) << 24)) / 2 ** 31,
        "1/32": (at: number) => file.getInt32(at, true) / 2 ** 31,
        "3/32": (at: number) => file.getFloat32(at, true),
      };
      const read = formats[`${kind}/${bits}`];
      if (!read || !channels) return refuse(`has format ${kind} of ${bits} bits, expected integers or floats`);
      const step = (channels * bits) / 8;
      const samples = new Float32Array(Math.floor(Math.min(size, bytes.length - start) / step));
      for (let i = 0; i < samples.length; i++) {
        let sum = 0;
        for (let channel = 0; channel < channels; channel++) sum += read(start + i * step + (channel * bits) / 8);
        samples[i] = sum / channels;
      }
      return { samples, rate };
    }
    at = start + size + (size & 1);
  }
  return refuse("has no samples");
}
