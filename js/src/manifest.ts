import { MimiError } from "./errors.js";

export type Dtype = "float32" | "float16" | "int32" | "int64";

/** An input or output of a graph; a text in `shape` is free at run time. */
export interface TensorInfo {
  name: string;
  dtype: Dtype;
  shape: (number | string)[];
}

/** A tensor that is fed back: output `present` of one call is input `past` of the next. */
export interface StateInfo {
  name: string;
  kind: string;
  dtype: Dtype;
  past: string;
  present: string;
  initial_shape: (number | string)[];
  initial_value: number;
}

export interface GraphInfo {
  file: string;
  inputs: TensorInfo[];
  outputs: TensorInfo[];
  states: StateInfo[];
}

/** What this package reads of a variant's `manifest.json`; the file holds more. */
export interface Manifest {
  name: string;
  precision: string;
  num_codebooks: number;
  layout: "window" | "ring";
  frames_per_call: number | null;
  source: { model: string; revision: string | null };
  geometry: { sampling_rate: number; codebook_size: number };
  /** Samples in a frame, frames in a second, bits in a second with all codebooks: computed from the geometry. */
  frameSize: number;
  frameRate: number;
  bitrate: number;
  graphs: { encoder: GraphInfo; decoder?: GraphInfo };
  files: Record<string, { bytes: number; sha256: string }>;
}

export const GOLDEN = "golden.safetensors";
const FORMAT_VERSION = 1;

/** Bits in a second of `codebooks` codebooks. */
export function bitrate(manifest: Manifest, codebooks: number): number {
  return codebooks * Math.log2(manifest.geometry.codebook_size) * manifest.frameRate;
}

/** The files that `load` fetches. */
export function neededFiles(manifest: Manifest): string[] {
  return [...Object.values(manifest.graphs).map((graph) => graph.file), GOLDEN];
}

/** Read and check the text of a `manifest.json`; `where` is named in errors. */
export function parseManifest(text: string, where: string): Manifest {
  const refuse = (why: string): never => {
    throw new MimiError("manifest", `${where} ${why}`);
  };
  let raw: any;
  try {
    raw = JSON.parse(text);
  } catch {
    refuse("is no JSON, so this is no variant directory");
  }
  if (raw?.format_version !== FORMAT_VERSION) {
    refuse(`has format_version ${JSON.stringify(raw?.format_version)}, this package reads ${FORMAT_VERSION}`);
  }
  const { geometry, graphs, files } = raw;
  const numbers = [geometry?.sampling_rate, geometry?.codebook_size, geometry?.latent_stride, raw.num_codebooks];
  if (!numbers.every(Number.isInteger) || !Array.isArray(geometry.upsampling_ratios) || !graphs?.encoder || !files) {
    refuse("lacks geometry, graphs or files; export the variant again");
  }
  if (raw.num_codebooks < 1 || (graphs.decoder && (raw.from ?? "codes") !== "codes")) {
    refuse("is of a variant that gives or takes latents; this package runs codes");
  }
  if ((raw.batch ?? 1) !== 1) refuse(`is of graphs for a batch of ${raw.batch}; this package runs one stream a call`);
  for (const graph of Object.values(graphs) as GraphInfo[]) {
    const lists = [graph.inputs, graph.outputs, graph.states];
    if (typeof graph.file !== "string" || !lists.every(Array.isArray)) refuse("has a graph without file or tensors");
  }
  const frameSize = geometry.latent_stride * geometry.upsampling_ratios.reduce((a: number, b: number) => a * b, 1);
  const frameRate = geometry.sampling_rate / frameSize;
  const manifest: Manifest = { ...raw, frameSize, frameRate, bitrate: 0 };
  manifest.bitrate = bitrate(manifest, manifest.num_codebooks);
  for (const name of neededFiles(manifest)) {
    const entry = files[name];
    if (name.startsWith("/") || name.split("/").includes("..")) refuse(`names ${name}, which leads out of the directory`);
    if (!entry && name === GOLDEN) refuse(`lists no ${GOLDEN}, so nothing can be checked; export the variant again`);
    if (!Number.isInteger(entry?.bytes) || !/^[0-9a-f]{64}$/.test(entry?.sha256)) refuse(`does not list ${name}`);
  }
  return manifest;
}
