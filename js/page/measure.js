// Speed of the variants of a site in headless Chromium, one frame a call, with and without threads:
//   node page/measure.js http://localhost:8000/ [FRAMES]
import fs from "node:fs";
import { build } from "esbuild";
import { chromium } from "playwright-core";

/** Seconds of processor time of all processes that this one began: says more than the clock where other work runs. */
function processorSeconds() {
  const all = fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map((pid) => {
    try {
      const fields = fs.readFileSync(`/proc/${pid}/stat`, "latin1").replace(/.*\) /s, "").split(" ");
      return { pid: Number(pid), parent: Number(fields[1]), ticks: Number(fields[11]) + Number(fields[12]) };
    } catch {
      return { pid: 0, parent: 0, ticks: 0 }; // ended meanwhile
    }
  });
  const own = new Set([process.pid]);
  for (let size = 0; size !== own.size; ) {
    size = own.size;
    for (const { pid, parent } of all) if (own.has(parent)) own.add(pid);
  }
  return all.filter(({ pid }) => own.has(pid) && pid !== process.pid).reduce((sum, { ticks }) => sum + ticks, 0) / 100;
}

const [url, frames = "100"] = process.argv.slice(2);
const gpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--use-vulkan=swiftshader"];
const browser = await chromium.launch({ executablePath: process.env.MIMI_BROWSER ?? "/usr/bin/chromium", args: ["--no-sandbox", ...gpu] });
const page = await browser.newPage();
let before = 0;
await page.exposeFunction("processorSeconds", () => {
  const now = processorSeconds();
  const passed = now - before;
  before = now;
  return passed;
});
await page.goto(url);
await page.waitForFunction(() => document.querySelectorAll("#variant option").length > 0);
const source = { entryPoints: [new URL("../src/browser.ts", import.meta.url).pathname], bundle: true, format: "esm", write: false };
const library = `data:text/javascript;base64,${Buffer.from((await build(source)).outputFiles[0].contents).toString("base64")}`;
console.log("variant | asked | runs on | self-check | encode ms p50 (least) | decode | both at once: real-time factor p50 (least) | the same from processor time");
for (const variant of await (await page.request.get(`${url}variants.json`)).json()) {
  for (const backend of (process.env.MIMI_BACKENDS ?? "wasm,wasm-threads").split(",")) {
    const row = await page.evaluate(
      async ([path, backend, frames, library]) => {
        const { load } = await import(library);
        const codec = await load(`models/${path}`, { backend, runtime: "runtime", worker: () => new Worker("worker.js", { type: "module" }) });
        const [encoder, decoder] = [await codec.encoder.stream(), await codec.decoder.stream()];
        await window.processorSeconds();
        const times = { encode: [], decode: [], both: [] };
        for (let frame = 0; frame < frames; frame++) {
          const samples = Float32Array.from({ length: codec.manifest.frameSize }, (_, i) => 0.3 * Math.sin(i * i * 1e-4 + frame));
          const codes = await encoder.push(samples);
          await decoder.push(codes);
          const [a, b] = [encoder.timings[0].milliseconds, decoder.timings[0].milliseconds];
          times.encode.push(a), times.decode.push(b), times.both.push((a + b) / 80);
        }
        const seconds = await window.processorSeconds();
        const told = codec.attempts.map((attempt) => `${attempt.backend}: ${attempt.reason}`).join("; ");
        await codec.close();
        return { backend: codec.backend, threads: codec.threads, check: codec.check.text, told, times, seconds };
      },
      [variant.path, backend, Number(frames), library],
    ).catch((error) => ({ error: error.message.split("\n")[0] }));
    if (row.error) {
      console.log(`${variant.name} | ${backend} | ${row.error}`);
      continue;
    }
    const [encode, decode, both] = Object.values(row.times).map((list) => {
      const sorted = [...list].sort((a, b) => a - b);
      const digits = list === row.times.both ? 3 : 1;
      return `${sorted[sorted.length >> 1].toFixed(digits)} (${sorted[0].toFixed(digits)})`;
    });
    console.log(`${variant.name} ${variant.precision} | ${backend} | ${row.backend} ×${row.threads} | ${row.check} | ${encode} | ${decode} | ${both} | ${(row.seconds / (0.08 * frames)).toFixed(3)}`);
    if (row.backend !== backend) console.log(`  ${row.told}`);
  }
}
await browser.close();
