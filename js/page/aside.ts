/** What is done beside the page's own thread, which must stay free to draw. */
import { Remote } from "../src/remote.js";
import type { Methods } from "./sound.js";

const PIECE = 1 << 19; // samples that are copied at once
const remote = new Remote(new Worker("sound.js", { type: "module" }));

/** Let the second Worker do it; the memory of `given` arrays goes there. */
export function aside<M extends keyof Methods>(method: M, args: Parameters<Methods[M]>, given: ArrayBufferView[] = []): Promise<Awaited<ReturnType<Methods[M]>>> {
  return remote.ask(method, args, undefined, given.map(({ buffer }) => buffer as ArrayBuffer));
}

/** Lets other tasks run; unlike a timer it is as fast in a tab in the background. */
export function pause(): Promise<void> {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** A copy, made in pieces. */
export async function copy(samples: Float32Array): Promise<Float32Array> {
  const all = new Float32Array(samples.length);
  for (let at = 0; at < all.length; at += PIECE) {
    if (at) await pause();
    all.set(samples.subarray(at, at + PIECE), at);
  }
  return all;
}
