// Tasks of the page's main thread in headless Chromium, in processor time, while the first variant of a site takes a
// file, plays it, saves and takes its codes, and hears the microphone:
//   node page/tasks.js http://localhost:8000/ [SECONDS]
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const MOST = 16; // ms: a task that takes longer makes a picture late

/** A stereo WAV of a gliding tone at 44.1 kHz: the page has to decode, to mix and to resample it. */
function wav(seconds, rate = 44_100) {
  const file = Buffer.alloc(44 + 4 * seconds * rate);
  file.write("RIFF"), file.writeUInt32LE(file.length - 8, 4), file.write("WAVEfmt ", 8);
  [[16, 4], [1, 2], [2, 2], [rate, 4], [4 * rate, 4], [4, 2], [16, 2]].reduce((at, [value, size]) => file.writeUIntLE(value, at, size), 16);
  file.write("data", 36), file.writeUInt32LE(file.length - 44, 40);
  for (let i = 0; i < 2 * seconds * rate; i++) file.writeInt16LE(Math.round(9000 * Math.sin((i >> 1) ** 2 * 2e-7)), 44 + 2 * i);
  return file;
}

const [url, given = "10"] = process.argv.slice(2);
const seconds = Number(given);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "tasks-"));
process.on("exit", () => fs.rmSync(folder, { recursive: true }));
const file = (name) => path.join(folder, name);
fs.writeFileSync(file("glide.wav"), wav(seconds));
const args = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];
const browser = await chromium.launch({ executablePath: process.env.MIMI_BROWSER ?? "/usr/bin/chromium", args });
const page = await (await browser.newContext({ serviceWorkers: "block", permissions: ["microphone"] })).newPage();
page.setDefaultTimeout(600_000);
const has = (id, pattern) => page.waitForFunction(([name, source]) => new RegExp(source).test(document.getElementById(name).textContent), [id, pattern]);

async function take(name) {
  await page.evaluate(() => (document.getElementById("time").textContent = ""));
  await page.setInputFiles("#open", file(name));
  await has("time", `of ${seconds}.0 s`);
  await page.waitForTimeout(600);
  await page.waitForSelector("#lanes[aria-busy=false]");
}

async function save(id, name) {
  const [saved] = await Promise.all([page.waitForEvent("download"), page.click(`#${id}`)]);
  await saved.saveAs(file(name));
}

async function traced(what, work) {
  await browser.startTracing(page, { categories: ["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"] });
  await work();
  const { traceEvents } = JSON.parse(await browser.stopTracing());
  const { frames } = traceEvents.find(({ name }) => name === "TracingStartedInBrowser").args.data;
  const { processId } = frames.find((frame) => frame.url.startsWith(url));
  const { tid } = traceEvents.find(({ name, pid, args }) => name === "thread_name" && pid === processId && args.name === "CrRendererMain");
  const own = traceEvents.filter((event) => event.pid === processId && event.tid === tid && event.ph === "X" && event.tdur !== undefined);
  const tasks = own.filter(({ name }) => name === "RunTask").sort((a, b) => a.tdur - b.tdur);
  const ms = ({ tdur }) => (tdur / 1000).toFixed(1);
  const at = (part) => ms(tasks[Math.min(tasks.length - 1, Math.floor(part * tasks.length))]);
  const late = tasks.filter(({ tdur }) => tdur > 1000 * MOST);
  const sum = tasks.reduce((all, { tdur }) => all + tdur, 0) / 1e6;
  console.log(`${what} | ${tasks.length} | ${at(0.5)} | ${at(0.95)} | ${at(0.99)} | ${at(1)} | ${late.length} | ${sum.toFixed(2)}`);
  for (const { ts, dur, ...task } of late.slice(-5)) {
    const within = own.filter((event) => event.ts > ts && event.ts + event.dur <= ts + dur && event.tdur > 1000 && !event.name.endsWith("RunTask"));
    console.log(`  ${ms(task)} ms: ${within.map((event) => `${event.name} ${event.args.data?.functionName ?? ""} ${ms(event)}`).join(", ")}`);
  }
}

await page.goto(url);
console.log("what it does | tasks | ms of processor time p50 | p95 | p99 | max | over 16 ms | all tasks, s");
await traced("loads", async () => {
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll("#variant option").length > 0);
  await page.selectOption("#backend", "wasm");
  await page.click("#load");
  await has("state", "runs on");
});
await traced(`encodes and decodes ${seconds} s`, () => take("glide.wav"));
await traced("plays them", async () => {
  await page.click("#play");
  await page.waitForTimeout(1000 * seconds);
});
await traced("saves", async () => {
  await save("save-wav", "decoded.wav");
  await save("save-codes", "codes.safetensors");
});
await traced("takes codes and a WAV of its own", async () => {
  await take("codes.safetensors");
  await take("decoded.wav");
});
await traced(`hears the microphone ${seconds} s, live`, async () => {
  await page.check("#monitor");
  await page.click("#mic");
  await page.waitForTimeout(1000 * seconds);
});
console.log(`at the end: ${await page.textContent("#time")}, ${await page.textContent("#m-underruns")} underruns, real-time factor ${await page.textContent("#m-factor")} ${await page.textContent("#problem")}`);
await browser.close();
