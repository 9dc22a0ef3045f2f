/** The second Worker: files of sound and codes, and the numbers behind the pictures. */
import { MimiError, line } from "../src/errors.js";
import { readCodes, readWav, writeCodes, writeWav, type Codes } from "../src/media.js";
import { answer } from "../src/remote.js";
import { BANDS, HOP, PEAKS, melColumn } from "./mel.js";

async function bytesOf(file: Blob): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    throw new MimiError("audio", `the browser does not get at the file: ${line(error)}`);
  }
}

const methods = {
  codesFile: (...given: Parameters<typeof writeCodes>) => new Blob([writeCodes(...given) as BlobPart]),
  soundFile: (samples: Float32Array, rate: number) => new Blob([writeWav(samples, rate) as BlobPart], { type: "audio/wav" }),

  async readCodes(file: Blob): Promise<Codes & { samples?: number }> {
    return readCodes(await bytesOf(file));
  },

  /** The samples of a WAV file of this rate, as they are; or the bytes of another file. */
  async readSound(file: Blob, rate: number): Promise<{ samples?: Float32Array; bytes?: Uint8Array<ArrayBuffer> }> {
    const bytes = await bytesOf(file);
    try {
      const wav = readWav(bytes);
      return wav.rate === rate ? { samples: wav.samples } : { bytes };
    } catch (error) {
      if (error instanceof MimiError) return { bytes }; // no WAV of a kind that is read here
      throw error;
    }
  },

  /** The mean of channels. */
  mix(...channels: Float32Array[]): Float32Array {
    return channels[0]!.map((_, i) => channels.reduce((sum, channel) => sum + channel[i]!, 0) / channels.length);
  },

  /** Peaks and mel columns of samples, of which the first `before` were there already. */
  examine(samples: Float32Array, before: number, rate: number): { peaks: Float32Array; columns: Uint8Array } {
    const [size, count] = [rate / PEAKS, samples.length - before];
    const peaks = new Float32Array((2 * count) / size);
    for (let bin = 0; bin < count / size; bin++) {
      const piece = samples.subarray(before + bin * size, before + (bin + 1) * size);
      peaks[2 * bin] = piece.reduce((a, b) => Math.min(a, b), 0);
      peaks[2 * bin + 1] = piece.reduce((a, b) => Math.max(a, b), 0);
    }
    const columns = new Uint8Array((count / HOP) * BANDS);
    for (let column = 0; column < count / HOP; column++) columns.set(melColumn(samples, before + (column + 1) * HOP, rate), column * BANDS);
    return { peaks, columns };
  },
};

export type Methods = typeof methods;

answer((_id, method, args) => (methods as any)[method](...args));
