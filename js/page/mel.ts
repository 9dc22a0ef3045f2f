/** Mel spectra of a growing signal: 50 columns a second, each of the 1024 samples that end with it. */
export const PEAKS = 100; // pairs of lowest and highest value a second, for the waveform
export const BANDS = 64;
export const HOP = 480;
export const SIZE = 1024;
const FLOOR_DB = -80;

const hann = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
const cosine = Float32Array.from({ length: SIZE / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / SIZE));
const sine = Float32Array.from({ length: SIZE / 2 }, (_, i) => Math.sin((2 * Math.PI * i) / SIZE));
const re = new Float32Array(SIZE);
const im = new Float32Array(SIZE);

/** Radix-2 transform of `re`, `im` in place. */
function transform(): void {
  for (let i = 1, j = 0; i < SIZE; i++) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j]!, re[i]!];
  }
  for (let half = 1; half < SIZE; half *= 2) {
    const step = SIZE / (2 * half);
    for (let start = 0; start < SIZE; start += 2 * half) {
      for (let k = 0; k < half; k++) {
        const [a, b] = [start + k, start + k + half];
        const [c, s] = [cosine[k * step]!, -sine[k * step]!];
        const [x, y] = [re[b]! * c - im[b]! * s, re[b]! * s + im[b]! * c];
        re[b] = re[a]! - x;
        im[b] = im[a]! - y;
        re[a]! += x;
        im[a]! += y;
      }
    }
  }
}

const mel = (hz: number) => 2595 * Math.log10(1 + hz / 700);
const edges = (rate: number) => {
  const top = mel(rate / 2);
  return Array.from({ length: BANDS + 2 }, (_, i) => (700 * (10 ** ((top * i) / (BANDS + 1) / 2595) - 1) * SIZE) / rate);
};
const known = new Map<number, number[]>();

/** The column of the samples before `end` as numbers from 0 (80 dB below full scale, or less) to 255. */
export function melColumn(samples: Float32Array, end: number, rate: number): Uint8Array {
  const places = known.get(rate) ?? known.set(rate, edges(rate)).get(rate)!;
  const start = end - SIZE;
  for (let i = 0; i < SIZE; i++) re[i] = start + i < 0 ? 0 : (samples[start + i] ?? 0) * hann[i]!;
  im.fill(0);
  // the input's order is that of the transform's bit reversal, which swaps the real part alone: `im` is zero
  transform();
  const column = new Uint8Array(BANDS);
  for (let band = 0; band < BANDS; band++) {
    const [low, middle, high] = [places[band]!, places[band + 1]!, places[band + 2]!];
    let [sum, weights] = [0, 1e-9];
    for (let bin = Math.max(1, Math.floor(low)); bin <= Math.ceil(high) && bin < SIZE / 2; bin++) {
      const weight = Math.max(0, Math.min((bin - low) / (middle - low), (high - bin) / (high - middle)), bin === Math.round(middle) ? 0.1 : 0);
      sum += weight * (re[bin]! ** 2 + im[bin]! ** 2);
      weights += weight;
    }
    const db = 10 * Math.log10(sum / weights / (SIZE / 4) ** 2 + 1e-12);
    column[band] = Math.max(0, Math.min(255, (255 * (db - FLOOR_DB)) / -FLOOR_DB));
  }
  return column;
}

/** How far two columns are apart, 255 for 40 dB. */
export function difference(a: Uint8Array, b: Uint8Array): Uint8Array {
  return a.map((value, i) => Math.min(255, 2 * Math.abs(value - b[i]!)));
}
