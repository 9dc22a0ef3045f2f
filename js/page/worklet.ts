/** In the audio thread: a ring buffer of both signals to play from, and one that collects the microphone. */
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;

const RING = 1 << 17; // samples; 5 s
const REPORT = 8; // blocks of 128 samples between two reports
const FADE = 1 / 240; // of the switch, a sample

class Player extends AudioWorkletProcessor {
  private readonly rings = [new Float32Array(RING), new Float32Array(RING)];
  private have = 0; // up to where
  private at = 0;
  private end = Infinity;
  private playing = false;
  private pick = 1;
  private mix = 1;
  private underruns = 0;
  private starved = false;
  private blocks = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      if (data.signals) {
        data.signals.forEach((signal: Float32Array, i: number) => {
          signal.forEach((value, k) => (this.rings[i]![(data.at + k) % RING] = value));
        });
        this.have = Math.max(this.have, data.at + data.signals[0].length);
      }
      if ("seek" in data) this.at = this.have = data.seek;
      if ("end" in data) this.end = data.end;
      if ("pick" in data) this.pick = data.pick;
      if ("playing" in data) this.playing = data.playing;
      if ("shift" in data) {
        // what came before was dropped: places count from a later beginning
        this.rings.forEach((ring, i) => (this.rings[i] = ring.map((_, k) => ring[(k + data.shift) % RING]!)));
        this.at = Math.max(0, this.at - data.shift);
        this.have = Math.max(0, this.have - data.shift);
      }
    };
  }

  process(_inputs: Float32Array[][], outputs: Float32Array[][]): boolean {
    const output = outputs[0]![0]!;
    if (this.playing) {
      for (let i = 0; i < output.length && this.at < this.have && this.at < this.end; i++, this.at++) {
        this.mix += Math.max(-FADE, Math.min(FADE, this.pick - this.mix));
        const [a, b] = [this.rings[0]![this.at % RING]!, this.rings[1]![this.at % RING]!];
        output[i] = a + this.mix * (b - a);
      }
      const ended = this.at >= this.end;
      const starved = !ended && this.at >= this.have;
      if (starved && !this.starved) this.underruns++;
      this.starved = starved;
      if (ended) this.playing = false;
      if (ended || this.blocks++ % REPORT === 0) this.port.postMessage({ at: this.at, underruns: this.underruns, ended });
    }
    return true;
  }
}

class Capture extends AudioWorkletProcessor {
  private readonly ring = new Float32Array(1920);
  private filled = 0;

  process(inputs: Float32Array[][]): boolean {
    for (const value of inputs[0]?.[0] ?? []) {
      this.ring[this.filled++] = value;
      if (this.filled === this.ring.length) {
        this.port.postMessage(this.ring.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("player", Player);
registerProcessor("capture", Capture);
