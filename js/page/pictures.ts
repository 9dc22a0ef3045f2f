/** Pictures on one time axis: waveforms and strips of coloured columns, all drawn from what is there. */
type Colour = [number, number, number];

const stops = (list: Colour[]) =>
  Array.from({ length: 256 }, (_, i): Colour => {
    const at = (i / 255) * (list.length - 1);
    const [a, b] = [list[Math.floor(at)]!, list[Math.min(list.length - 1, Math.floor(at) + 1)]!];
    return a.map((value, c) => Math.round(value + (b[c]! - value) * (at % 1))) as Colour;
  });

export const HEAT = stops([[8, 6, 20], [80, 18, 110], [182, 54, 84], [248, 142, 40], [252, 250, 190]]);
export const MAP = stops([[66, 10, 104], [58, 84, 140], [32, 146, 140], [110, 200, 90], [252, 230, 60]]);
const TILE = 512; // columns in one canvas

/** Columns of colours that are put once and drawn often. */
export class Strip {
  private tiles: HTMLCanvasElement[] = [];

  constructor(private readonly rows: number, private readonly colours: Colour[]) {}

  /** Column `index`; values 0 to 255, the first on top. */
  put(index: number, values: ArrayLike<number>): void {
    const tile = (this.tiles[Math.floor(index / TILE)] ??= Object.assign(document.createElement("canvas"), { width: TILE, height: this.rows }));
    const image = new ImageData(1, this.rows);
    for (let row = 0; row < this.rows; row++) image.data.set([...this.colours[values[row]!]!, 255], 4 * row);
    tile.getContext("2d")!.putImageData(image, index % TILE, 0);
  }

  /** Draw columns `first` to `last` (fractions allowed) over the whole canvas; `end` is how many there are. */
  draw(canvas: HTMLCanvasElement, first: number, last: number, end: number): void {
    const context = canvas.getContext("2d")!;
    context.imageSmoothingEnabled = false;
    const scale = canvas.width / (last - first);
    for (let tile = Math.max(0, Math.floor(first / TILE)); tile * TILE < Math.min(last, end); tile++) {
      const columns = Math.min(TILE, end - tile * TILE);
      const image = this.tiles[tile];
      if (image) context.drawImage(image, 0, 0, columns, this.rows, (tile * TILE - first) * scale, 0, columns * scale, canvas.height);
    }
  }

  /** Forget `columns` at the beginning, whole tiles. */
  drop(columns: number): void {
    this.tiles.splice(0, columns / TILE);
  }
}

/** Fit a canvas to its place, empty it. */
export function prepare(canvas: HTMLCanvasElement): void {
  const scale = Math.min(2, devicePixelRatio || 1);
  const [width, height] = [Math.max(1, Math.round(canvas.clientWidth * scale)), Math.round(canvas.clientHeight * scale)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  else canvas.getContext("2d")!.clearRect(0, 0, width, height);
}

/** A waveform from pairs of lowest and highest values, `perSecond` of them. */
export function drawWave(canvas: HTMLCanvasElement, peaks: Float32Array, count: number, perSecond: number, from: number, to: number): void {
  const context = canvas.getContext("2d")!;
  const { width, height } = canvas;
  context.fillStyle = getComputedStyle(canvas).color;
  for (let x = 0; x < width; x++) {
    const first = Math.floor((from + ((to - from) * x) / width) * perSecond);
    const last = Math.max(first + 1, Math.floor((from + ((to - from) * (x + 1)) / width) * perSecond));
    if (first < 0 || first >= count) continue;
    let [low, high] = [0, 0];
    for (let i = first; i < Math.min(last, count); i++) {
      low = Math.min(low, peaks[2 * i]!);
      high = Math.max(high, peaks[2 * i + 1]!);
    }
    const half = height / 2;
    context.fillRect(x, half - high * half, 1, Math.max(1, (high - low) * half));
  }
}

/** The line where one hears. */
export function drawCursor(canvas: HTMLCanvasElement, fraction: number): void {
  const context = canvas.getContext("2d")!;
  const { caretColor, backgroundColor } = getComputedStyle(canvas);
  for (const [colour, width] of [[backgroundColor, 6], [caretColor, 2]] as const) {
    context.fillStyle = colour;
    context.fillRect(Math.round(fraction * canvas.width) - width / 2, 0, width, canvas.height);
  }
}
