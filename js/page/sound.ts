/** The second Worker: files of sound and codes, and the numbers behind the pictures. */
import { readCodes, readWav, writeCodes, writeWav } from "../src/media.js";
import { answer } from "../src/remote.js";
import { BANDS, HOP, PEAKS, melColumn } from "./mel.js";

const methods = {
  readCodes,
  readWav,
  writeCodes,
  writeWav,

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
