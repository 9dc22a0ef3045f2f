/** What runs behind the page: one codec, one track, and what encodes, decodes and plays it. Knows no buttons. */
import type { Codec } from "../src/browser.js";
import { aside, copy, pause } from "./aside.js";
import { Player } from "./player.js";
import { Track } from "./track.js";
import { Decoding, Encoding, Times } from "./work.js";

const LIVE_SECONDS = 120; // that are kept of the microphone
const BEHIND = 3; // frames, of what is heard live
const TOO_LATE = 12; // frames
const FRAMES_AT_ONCE = 32; // of a file of codes, before other tasks run
const MOST_WAITING = 25; // frames, before a slow computer leaves out sound

export class Stage {
  codec: Codec | null = null;
  track: Track | null = null;
  player: Player | null = null;
  encodeTimes = new Times();
  decodeTimes = new Times();
  codebooks = 0;
  hearing: 0 | 1 = 1;
  /** Whether a file is being encoded. */
  busy = false;
  recording: (() => void) | null = null;
  /** Whether the microphone is heard as soon as it is decoded. */
  private monitor = () => false;
  private decoding: Decoding | null = null;
  private encoding: Encoding | null = null;

  /** `onChange` after anything that is seen, `onProblem` for what goes wrong later than its cause. */
  constructor(private readonly onChange: () => void, private readonly onProblem: (problem: unknown) => void) {}

  /** Another model; sound that is there is encoded again. */
  async use(codec: Codec): Promise<void> {
    await this.stop();
    const samples = this.track && (await copy(this.track.original.subarray(0, this.track.samples)));
    await this.codec?.close();
    this.codec = codec;
    this.codebooks = codec.manifest.num_codebooks;
    if (samples?.length) await this.transcode(samples);
  }

  /** A new track; the player and both loops turn to it. */
  private async begin(seconds: number): Promise<Track> {
    const { manifest, decoder } = this.codec!;
    const { sampling_rate: rate, codebook_size } = manifest.geometry;
    await this.stop();
    this.player ??= await Player.open(rate, this.onChange);
    const player = this.player;
    await player.play(false);
    const drawn = (error?: unknown) => (error ? this.onProblem(error) : this.onChange());
    const most = Track.most(rate, manifest.frameSize, seconds);
    const track = (this.track = new Track(rate, manifest.frameSize, manifest.num_codebooks, codebook_size, most, drawn));
    [this.encodeTimes, this.decodeTimes] = [new Times(), new Times()];
    player.track = track;
    player.live = false;
    player.setEnd(Infinity);
    player.seek(0);
    const own = (this.decoding = new Decoding(await decoder!.stream(), track, this.codebooks, this.decodeTimes, (frame) => {
      player.made(frame);
      if (this.monitor()) this.hearLive(player, frame * track.frameSize, track.frameSize);
      this.onChange();
    }));
    own.run().catch((error) => own === this.decoding && this.onProblem(error));
    return track;
  }

  /** End what runs; the track stays. */
  private async stop(): Promise<void> {
    await this.stopRecording();
    if (this.encoding) this.encoding.stopped = true;
    this.decoding?.stop();
    this.decoding = null;
  }

  /** Encode samples and decode them, frame by frame. */
  async transcode(samples: Float32Array): Promise<void> {
    const seconds = samples.length / this.codec!.manifest.geometry.sampling_rate;
    const track = await this.begin(seconds);
    if (samples.length > track.most * track.frameSize) {
      this.onProblem("This page takes the first 10 minutes of a file; `mimi-export encode` takes all of it.");
      samples = samples.subarray(0, track.most * track.frameSize);
    }
    this.busy = true;
    const work = (this.encoding = await Encoding.open(this.codec!, this.encodeTimes, (codes, piece, real) => {
      track.add(codes, piece, real);
      this.decoding?.grown();
      this.onChange();
    }));
    for (let at = 0; at < samples.length && !work.stopped; at += track.frameSize) await work.push(samples.slice(at, at + track.frameSize));
    await work.close();
    if (work.stopped) return;
    this.busy = false;
    this.player?.setEnd(track.samples);
  }

  /** A file of sound, or of codes (`.safetensors`). */
  async open(file: Blob & { name?: string }): Promise<void> {
    if (!file.name?.endsWith(".safetensors")) return this.transcode(await this.samplesOf(file));
    const codes = await aside("readCodes", [file]);
    const { num_codebooks: most, frameSize, geometry } = this.codec!.manifest;
    if (codes.codebooks > most) throw new Error(`the file has ${codes.codebooks} codebooks, this model takes ${most}`);
    if (codes.data.some((code) => code < 0 || code >= geometry.codebook_size)) throw new Error("some codes are out of this model's range");
    this.codebooks = codes.codebooks;
    const track = await this.begin((codes.frames * frameSize) / geometry.sampling_rate);
    for (let frame = 0; frame < Math.min(codes.frames, track.most); frame++) {
      const all = Int32Array.from({ length: most }, (_, book) => (book < codes.codebooks ? codes.data[book * codes.frames + frame]! : 0));
      track.add(all, null, Math.min(frameSize, (codes.samples ?? Infinity) - frame * frameSize));
      if (frame % FRAMES_AT_ONCE) continue;
      this.decoding?.grown();
      await pause();
      if (this.track !== track) return;
    }
    this.decoding?.grown();
    this.player!.setEnd(track.samples);
  }

  private async samplesOf(file: Blob): Promise<Float32Array> {
    const rate = this.codec!.manifest.geometry.sampling_rate;
    const { samples, bytes } = await aside("readSound", [file, rate]);
    if (samples) return samples;
    const audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes!.buffer);
    const channels: Float32Array[] = [];
    for (let i = 0; i < audio.numberOfChannels; i++) channels.push(await copy(audio.getChannelData(i)));
    return aside("mix", channels as [Float32Array], channels);
  }

  /** Encode what the microphone hears; with `monitor` it is played as soon as it is decoded. */
  async record(monitor: () => boolean): Promise<void> {
    if (!navigator.mediaDevices) throw new Error("a page may hear it over https or from localhost only");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false } });
    const track = await this.begin(LIVE_SECONDS);
    const player = this.player!;
    await player.context.resume();
    const source = player.context.createMediaStreamSource(stream);
    const capture = new AudioWorkletNode(player.context, "capture", { numberOfOutputs: 0 });
    const work = (this.encoding = await Encoding.open(this.codec!, this.encodeTimes, (codes, piece) => {
      const gone = track.makeRoom();
      if (gone) {
        this.decoding?.shift(gone);
        player.shift(gone * track.frameSize, gone);
      }
      track.add(codes, piece);
      this.decoding?.grown();
      this.onChange();
    }));
    capture.port.onmessage = ({ data }) => {
      if (work.waiting > MOST_WAITING) this.onProblem("This computer is too slow for this model: sound of the microphone was left out.");
      else work.push(data).catch(this.onProblem);
    };
    source.connect(capture);
    player.live = true;
    this.monitor = monitor;
    this.recording = () => {
      this.monitor = () => false;
      source.disconnect();
      stream.getTracks().forEach((one) => one.stop());
      capture.port.onmessage = null;
    };
  }

  /** Play what comes in, and catch up after a standstill. */
  private hearLive(player: Player, newest: number, frameSize: number): void {
    if (newest < BEHIND * frameSize || (player.playing && newest - player.at < TOO_LATE * frameSize)) return;
    player.seek(newest - BEHIND * frameSize);
    void player.play(true);
  }

  async stopRecording(): Promise<void> {
    if (!this.recording) return;
    this.recording();
    this.recording = null;
    await this.encoding?.close();
    this.player!.live = false;
    this.player!.setEnd(this.track!.samples);
  }

  /** Decode with the first `codebooks`, from what is heard on. */
  choose(codebooks: number): void {
    this.codebooks = codebooks;
    if (this.track) this.decoding?.choose(codebooks, this.heardFrame, this.player!.live);
  }

  switchSides(): void {
    this.hearing = this.hearing ? 0 : 1;
    this.player?.pick(this.hearing);
  }

  async play(): Promise<void> {
    if (this.track?.frames) await this.player!.play(!this.player!.playing);
    this.onChange();
  }

  seek(seconds: number): void {
    const { track, player, decoding } = this;
    if (!track || !player) return;
    player.seek(Math.round(seconds * track.rate));
    const frame = this.heardFrame;
    if (decoding && frame < track.frames && track.made[frame] !== this.codebooks && !player.live) decoding.again(frame);
    this.onChange();
  }

  /** Seconds from the beginning to what is heard; while something comes in and nothing is played, to its end. */
  get cursor(): number {
    const { track, player } = this;
    if (!track || !player) return 0;
    return player.live && !player.playing ? track.seconds : player.at / track.rate;
  }

  /** Whether something of the track is still to be encoded or decoded. */
  get working(): boolean {
    return this.busy || !!this.track?.drawing || (!!this.decoding && !this.decoding.idle);
  }

  /** Milliseconds of work for a millisecond of sound, both directions. */
  get realTimeFactor(): number {
    return ((this.encodeTimes.mean + this.decodeTimes.mean) * (this.codec?.manifest.frameRate ?? 0)) / 1000;
  }

  /** A WAV file of what is heard. */
  async soundFile(): Promise<Blob> {
    const track = this.track!;
    const { gone } = track;
    const heard = await copy((this.hearing ? track.decoded : track.original).subarray(0, track.samples));
    if (gone !== track.gone) return this.soundFile(); // a recording forgot its beginning meanwhile
    return aside("soundFile", [heard, track.rate], [heard]);
  }

  /** The file of the codes that are decoded. */
  codesFile(): Promise<Blob> {
    const { track, codebooks } = this;
    return aside("codesFile", [track!.codesOf(codebooks), this.codec!.manifest, track!.samples]);
  }

  private get heardFrame(): number {
    return Math.floor(this.player!.at / this.track!.frameSize);
  }
}
