/** The six pictures under each other, on one axis of time. */
import { HOP, PEAKS } from "./mel.js";
import { drawCursor, drawWave, prepare } from "./pictures.js";
import type { Stage } from "./stage.js";

const SPAN = 10; // seconds that are seen at once
const NAMES = ["wave-a", "wave-b", "mel-a", "mel-b", "mel-d", "codes"] as const;

export class Lanes {
  private readonly canvases = NAMES.map((id) => document.getElementById(id) as HTMLCanvasElement);
  private seen: [number, number] = [0, 1];
  private pointed: number | null = null; // seconds, where the pointer is

  constructor(private readonly stage: Stage, private readonly calm: MediaQueryList, onChange: () => void) {
    for (const canvas of this.canvases) {
      const seconds = ({ offsetX }: PointerEvent) => this.seen[0] + ((this.seen[1] - this.seen[0]) * offsetX) / canvas.clientWidth;
      const point = (value: number | null) => {
        this.pointed = value;
        onChange();
      };
      canvas.onpointerdown = (event) => stage.seek(seconds(event));
      canvas.onpointermove = (event) => point(seconds(event));
      canvas.onpointerleave = () => point(null);
    }
  }

  /** Draw what is there, and give the frame under the pointer (or the cursor) in words. */
  draw(): string | null {
    for (const canvas of this.canvases) prepare(canvas);
    const { track, cursor, player, busy } = this.stage;
    if (!track) return null;
    const [from, to] = (this.seen = this.view(track.seconds, busy && !player?.playing && !player?.at ? track.seconds : cursor));
    const [waveA, waveB, melA, melB, melD, codes] = this.canvases as [HTMLCanvasElement, HTMLCanvasElement, HTMLCanvasElement, HTMLCanvasElement, HTMLCanvasElement, HTMLCanvasElement];
    const bins = Math.floor(track.seconds * PEAKS);
    drawWave(waveA, track.peaks[0], bins, PEAKS, from, to);
    drawWave(waveB, track.peaks[1], bins, PEAKS, from, to);
    const [perSecond, frameRate] = [track.rate / HOP, track.rate / track.frameSize];
    for (const [canvas, strip] of [[melA, track.strips.a], [melB, track.strips.b], [melD, track.strips.d]] as const) {
      strip.draw(canvas, from * perSecond, to * perSecond, (track.frames * track.frameSize) / HOP);
    }
    track.strips.codes.draw(codes, from * frameRate, to * frameRate, track.frames);
    for (const canvas of this.canvases) drawCursor(canvas, (cursor - from) / (to - from));
    const frame = Math.min(track.frames - 1, Math.floor((this.pointed ?? cursor) * frameRate));
    return frame < 0 ? null : `Frame ${frame} (${(frame / frameRate).toFixed(2)} s): ${track.frameCodes(frame).join(" ")}`;
  }

  /** The seconds that are seen: all of a short track, else around the cursor (in pages where motion is unwanted). */
  private view(seconds: number, cursor: number): [number, number] {
    if (seconds <= SPAN) return [0, Math.max(seconds, 1)];
    if (this.calm.matches) {
      const page = Math.floor(cursor / SPAN) * SPAN;
      return [page, page + SPAN];
    }
    const from = Math.max(0, Math.min(seconds - SPAN, cursor - SPAN / 2));
    return [from, from + SPAN];
  }
}
