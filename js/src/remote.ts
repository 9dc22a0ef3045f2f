/** Questions to a Worker, `{id, method, args}`, and its answers: `{id, result}` or `{id, error}`, and `{id, progress}` before. */
import { MimiError, line } from "./errors.js";
import type { Progress } from "./files.js";

/** Asks a Worker and waits for its answer. */
export class Remote {
  private readonly waiting = new Map<number, { resolve(value: any): void; reject(error: Error): void; onProgress?(progress: Progress): void }>();
  private next = 0;
  private dead?: MimiError;

  constructor(private readonly worker: Worker) {
    worker.onmessage = ({ data: { id, result, error, progress } }) => {
      const entry = this.waiting.get(id);
      if (progress) return entry?.onProgress?.(progress);
      this.waiting.delete(id);
      if (error) entry?.reject(new MimiError(error.fault, error.message));
      else entry?.resolve(result);
    };
    worker.onerror = (event) => this.end(`the Worker failed: ${event.message ?? "it does not load"}`);
  }

  ask(method: string, args: unknown[], onProgress?: (progress: Progress) => void, transfer: Transferable[] = []): Promise<any> {
    if (this.dead) return Promise.reject(this.dead);
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, ...(onProgress ? { onProgress } : {}) });
      this.worker.postMessage({ id, method, args }, transfer);
    });
  }

  end(why = "the codec was closed"): void {
    this.dead = new MimiError("backend", why);
    this.worker.terminate();
    for (const { reject } of this.waiting.values()) reject(this.dead);
    this.waiting.clear();
  }
}

/** In the Worker: answer with what `work` gives, and hand over the memory of its arrays. */
export function answer(work: (id: number, method: string, args: any[]) => any): void {
  addEventListener("message", async ({ data: { id, method, args } }: MessageEvent) => {
    try {
      const result = await work(id, method, args);
      const parts = ArrayBuffer.isView(result) ? [result] : [...Object.values(result ?? {}), result?.codes?.data];
      const arrays = parts.filter((part): part is ArrayBufferView => ArrayBuffer.isView(part));
      postMessage({ id, result }, { transfer: arrays.map(({ buffer }) => buffer as ArrayBuffer) });
    } catch (error) {
      const fault = error instanceof MimiError ? error.fault : "backend";
      postMessage({ id, error: { fault, message: error instanceof MimiError ? error.message : line(error) } });
    }
  });
}
