/** Plays a track: feeds the audio thread a little ahead of what is heard. */
import type { Track } from "./track.js";

const AHEAD = 5; // frames

export class Player {
  /** The sample that is heard. */
  at = 0;
  underruns = 0;
  playing = false;
  live = false;
  private sent = 0; // frames, up to here
  private end = Infinity;

  private constructor(readonly context: AudioContext, private readonly node: AudioWorkletNode, private readonly onTick: () => void) {
    this.node.port.onmessage = ({ data }) => {
      this.at = data.at;
      this.underruns = data.underruns;
      if (data.ended) this.playing = false;
      this.feed();
      this.onTick();
    };
  }

  track: Track | null = null;

  /** Call it after a click: browsers let no page play before. */
  static async open(rate: number, onTick: () => void): Promise<Player> {
    const context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    const node = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    node.connect(context.destination);
    return new Player(context, node, onTick);
  }

  /** The end of the track, when it is known; a live one has none. */
  setEnd(samples: number): void {
    this.end = samples;
    this.node.port.postMessage({ end: samples });
  }

  seek(sample: number): void {
    if (!this.track) return;
    this.at = Math.max(0, Math.min(sample, this.track.samples - 1));
    this.sent = Math.floor(this.at / this.track.frameSize);
    this.node.port.postMessage({ seek: this.at });
    this.feed();
  }

  async play(playing: boolean): Promise<void> {
    if (playing) await this.context.resume();
    if (playing && this.track && this.at >= Math.min(this.end, this.track.samples) - 1) this.seek(0);
    this.playing = playing;
    this.node.port.postMessage({ playing });
  }

  /** 0 is the original, 1 the reconstruction. */
  pick(side: 0 | 1): void {
    this.node.port.postMessage({ pick: side });
  }

  /** A frame was decoded, perhaps anew. */
  made(frame: number): void {
    const { track } = this;
    if (!track) return;
    if (frame < this.sent && (frame + 1) * track.frameSize > this.at) this.send(frame);
    else this.feed();
  }

  shift(samples: number, frames: number): void {
    this.at = Math.max(0, this.at - samples);
    this.sent = Math.max(0, this.sent - frames);
    this.node.port.postMessage({ shift: samples });
  }

  private feed(): void {
    const { track } = this;
    if (!track) return;
    const until = Math.min(track.frames, Math.floor(this.at / track.frameSize) + AHEAD);
    for (; this.sent < until && track.made[this.sent]; this.sent++) this.send(this.sent);
  }

  private send(frame: number): void {
    const { frameSize, original, decoded } = this.track!;
    const [first, last] = [frame * frameSize, (frame + 1) * frameSize];
    this.node.port.postMessage({ at: first, signals: [original.slice(first, last), decoded.slice(first, last)] });
  }

  async close(): Promise<void> {
    await this.context.close();
  }
}
