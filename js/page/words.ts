/** Every failure in plain words. */
import { MimiError } from "../src/browser.js";

const MICROPHONE: Record<string, string> = {
  NotAllowedError: "The browser was told not to let this page hear the microphone. Allow it beside the address, then try again.",
  NotFoundError: "No microphone is connected.",
  NotReadableError: "The microphone is used by another program, or cannot be opened.",
  NotSupportedError: "This browser cannot record at the model's 24 kHz. Open a file instead.",
};

const FAULTS: Record<string, string> = {
  hash: "A file of the model is not the published one, so it is not used.",
  missing: "A file of the model is not there.",
  network: "The model cannot be fetched.",
  manifest: "This is no model that the page can run.",
  backend: "Nothing in this browser computes the model as it should.",
  audio: "This sound cannot be read.",
  codes: "These codes cannot be decoded.",
  stream: "The stream has ended.",
};

export function plain(error: unknown, what: "microphone" | "sound" | "model"): string {
  if (error instanceof MimiError) return `${FAULTS[error.fault]} (${error.message})`;
  const { name = "", message = String(error) } = error as Error;
  if (what === "microphone") return MICROPHONE[name] ?? `The microphone cannot be used: ${message}`;
  if (what === "sound" && name === "EncodingError") return "The browser cannot read this file as sound.";
  return `This did not work: ${message}`;
}

export function size(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

export const BACKENDS: Record<string, string> = {
  webgpu: "WebGPU",
  "wasm-threads": "WebAssembly, threads",
  wasm: "WebAssembly, one thread",
};
