/** One graph and the states of its streams, wired by the names in the manifest. */
import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";
import { MimiError, line } from "./errors.js";
import type { Dtype, GraphInfo, StateInfo } from "./manifest.js";

/** What is used of onnxruntime-web or onnxruntime-node. */
export interface Ort {
  InferenceSession: { create(model: Uint8Array, options?: InferenceSession.SessionOptions): Promise<InferenceSession> };
  Tensor: TensorConstructor;
}

type Values = Float32Array | Uint16Array | Int32Array | BigInt64Array;

/** The states of a stream at one moment, by name. */
export type States = Record<string, { dtype: Dtype; dims: readonly number[]; data: Values }>;

const ARRAYS = { float32: Float32Array, float16: Uint16Array, int32: Int32Array, int64: BigInt64Array };

/** A session that was found to have the manifest's inputs and outputs. */
export class Graph {
  private constructor(readonly ort: Ort, readonly info: GraphInfo, private readonly session: InferenceSession) {}

  static async open(ort: Ort, info: GraphInfo, model: Uint8Array, options: InferenceSession.SessionOptions): Promise<Graph> {
    let session;
    try {
      session = await ort.InferenceSession.create(model, options);
    } catch (error) {
      throw new MimiError("backend", `${info.file} does not load: ${line(error)}`);
    }
    for (const [found, wanted] of [[session.inputNames, info.inputs], [session.outputNames, info.outputs]] as const) {
      const names = wanted.map((tensor) => tensor.name);
      if (String(found) !== String(names)) {
        throw new MimiError("manifest", `${info.file} has other inputs or outputs than the manifest says; export it again`);
      }
    }
    return new Graph(ort, info, session);
  }

  /** The zeros that begin a stream. */
  initialStates(): States {
    const entry = ({ name, dtype, initial_shape, initial_value }: StateInfo) => {
      const dims = initial_shape.map((dim) => (typeof dim === "number" ? dim : 1)); // a batch of one
      const size = dims.reduce((product, dim) => product * dim, 1);
      const data: any = new ARRAYS[dtype](size);
      if (initial_value) data.fill(dtype === "int64" ? BigInt(initial_value) : initial_value);
      return [name, { dtype, dims, data }];
    };
    return Object.fromEntries(this.info.states.map(entry));
  }

  /** One call: the data output, and the states after it. */
  async run(data: Tensor, states: Record<string, Tensor>): Promise<[Tensor, Record<string, Tensor>]> {
    const { inputs, outputs, states: infos, file } = this.info;
    const feeds = { [inputs[0]!.name]: data, ...Object.fromEntries(infos.map((s) => [s.past, states[s.name]!])) };
    let results;
    try {
      results = await this.session.run(feeds);
    } catch (error) {
      throw new MimiError("backend", `${file} failed on [${data.dims}]: ${line(error)}`);
    }
    return [results[outputs[0]!.name]!, Object.fromEntries(infos.map((s) => [s.name, results[s.present]!]))];
  }

  async close(): Promise<void> {
    await this.session.release();
  }
}

/** The states of one stream between two calls. */
export class StreamState {
  private tensors: Record<string, Tensor> = {};

  constructor(readonly graph: Graph) {
    this.restore(graph.initialStates());
  }

  async step(data: Tensor): Promise<Tensor> {
    const [output, states] = await this.graph.run(data, this.tensors);
    this.tensors = states;
    return output;
  }

  snapshot(): States {
    const copy = ({ type, dims, data }: Tensor) => ({ dtype: type as Dtype, dims: [...dims], data: (data as Values).slice() });
    return Object.fromEntries(Object.entries(this.tensors).map(([name, tensor]) => [name, copy(tensor)]));
  }

  restore(states: States): void {
    const make = this.graph.ort.Tensor as unknown as new (dtype: string, data: Values, dims: readonly number[]) => Tensor;
    const entries = Object.entries(states).map(([name, s]) => [name, new make(s.dtype, s.data.slice(), s.dims)]);
    this.tensors = Object.fromEntries(entries);
  }
}
