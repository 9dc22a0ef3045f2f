/** What stands beside onnxruntime (in a Worker in the browser): the graphs of one variant and its streams. */
import type { InferenceSession } from "onnxruntime-common";
import { selfCheck, type SelfCheck } from "./check.js";
import { MimiError } from "./errors.js";
import { Graph, type Ort } from "./graph.js";
import { GOLDEN, type Manifest } from "./manifest.js";
import { DecoderCore, EncoderCore } from "./stream.js";

export type Kind = "encoder" | "decoder";

export class Host {
  private readonly streams = new Map<number, EncoderCore | DecoderCore>();
  private readonly waiting = new Map<number, Promise<unknown>>();
  private next = 0;

  private constructor(
    private readonly manifest: Manifest,
    private readonly graphs: { encoder: Graph; decoder?: Graph },
    readonly check: SelfCheck,
  ) {}

  /** Load the graphs and replay the golden clip. */
  static async open(ort: Ort, manifest: Manifest, files: Record<string, Blob>, options: InferenceSession.SessionOptions): Promise<Host> {
    const bytes = async (name: string) => new Uint8Array(await files[name]!.arrayBuffer());
    const open = async (kind: Kind) => {
      const info = manifest.graphs[kind];
      return info && (await Graph.open(ort, info, await bytes(info.file), options));
    };
    const encoder = (await open("encoder"))!;
    const decoder = await open("decoder");
    const graphs = decoder ? { encoder, decoder } : { encoder };
    return new Host(manifest, graphs, await selfCheck(graphs, manifest, await bytes(GOLDEN)));
  }

  /** Begin a stream; its number is for `call`. */
  open(kind: Kind): number {
    const graph = this.graphs[kind];
    if (!graph) throw new MimiError("manifest", `${this.manifest.name} has no ${kind}: it was exported as an encoder alone`);
    this.streams.set(this.next, new (kind === "encoder" ? EncoderCore : DecoderCore)(graph, this.manifest));
    return this.next++;
  }

  /** One method of a stream; calls of one stream run after each other. */
  async call(stream: number, method: "push" | "flush" | "reset" | "snapshot" | "restore", ...args: unknown[]): Promise<any> {
    const core: any = this.streams.get(stream);
    if (!core) throw new MimiError("stream", "this stream was closed");
    const before = this.waiting.get(stream);
    const now = (async () => {
      await before?.catch(() => undefined);
      return core[method](...args);
    })();
    this.waiting.set(stream, now);
    return now;
  }

  closeStream(stream: number): void {
    this.streams.delete(stream);
    this.waiting.delete(stream);
  }

  async close(): Promise<void> {
    this.streams.clear();
    await Promise.all(Object.values(this.graphs).map((graph) => graph.close()));
  }
}
