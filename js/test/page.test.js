// The page in a real browser: MIMI_SITE is the directory that `mimi-export web` wrote, MIMI_BROWSER a Chromium.
import assert from "node:assert/strict";
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import test, { after, before } from "node:test";
import { chromium } from "playwright-core";

const SITE = process.env.MIMI_SITE;
const VARIANTS = process.env.MIMI_VARIANTS; // with the clips and Python's codes
const options = SITE && process.env.MIMI_BROWSER ? { timeout: 120_000 } : { skip: "MIMI_SITE and MIMI_BROWSER are not set; tests/test_web.py sets them" };
const TYPES = { ".html": "text/html", ".css": "text/css", ".wasm": "application/wasm", ".js": "text/javascript", ".mjs": "text/javascript" };
const HEADERS = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
const CLIP = path.join(VARIANTS ?? "", "made.wav");
const patience = { timeout: 60_000 };

let browser;
let served;
let bare;

async function serve(headers) {
  const server = http.createServer((request, response) => {
    const name = new URL(request.url, "http://x").pathname.replace(/\/$/, "/index.html");
    const file = path.join(SITE, name);
    if (!fs.existsSync(file)) return response.writeHead(404).end();
    response.writeHead(200, { "Content-Type": TYPES[path.extname(file)] ?? "application/octet-stream", ...headers });
    fs.createReadStream(file).pipe(response);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return { url: `http://localhost:${server.address().port}/`, close: () => (server.closeAllConnections(), server.close()) };
}

before(async () => {
  if (options.skip) return;
  const args = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required"];
  browser = await chromium.launch({ executablePath: process.env.MIMI_BROWSER, args });
  [served, bare] = [await serve(HEADERS), await serve({})];
});
after(async () => {
  await browser?.close();
  served?.close();
  bare?.close();
});

/** A page of its own, with nothing stored; what its scripts complain of fails the test. */
async function open({ url = served.url, prepare = async () => {}, ...context } = {}) {
  const page = await (await browser.newContext({ acceptDownloads: true, serviceWorkers: "block", ...context })).newPage();
  page.on("pageerror", (error) => assert.fail(`the page threw ${error}`));
  await prepare(page);
  await page.goto(url);
  await page.waitForFunction(() => document.querySelectorAll("#variant option").length > 0, null, patience);
  return page;
}

const shown = (page, id) => page.textContent(`#${id}`);
const wait = (page, id, pattern) =>
  page.waitForFunction(([name, source]) => new RegExp(source).test(document.getElementById(name).textContent), [id, pattern], patience);

async function load(page, precision = "fp32", backend = "wasm") {
  const value = await page.evaluate((wanted) => [...document.querySelectorAll("#variant option")].find((o) => o.text.includes(wanted)).value, precision);
  await page.selectOption("#variant", value);
  await page.selectOption("#backend", backend);
  await page.click("#load");
  await Promise.race([wait(page, "state", "runs on"), page.waitForSelector("#problem:not([hidden])", patience)]);
  return { state: await shown(page, "state"), problem: await shown(page, "problem") };
}

/** Give the page a file and wait until all of it is decoded. */
async function give(page, file, seconds) {
  await page.setInputFiles("#open", file);
  await wait(page, "time", `of ${seconds} s`);
  await settled(page);
}

/** All is encoded, and decoded with the wanted number of codebooks. */
async function settled(page) {
  await page.waitForTimeout(600); // it is looked at every 250 ms
  await page.waitForSelector("#lanes[aria-busy=false]", patience);
}

async function download(page, id) {
  const [saved] = await Promise.all([page.waitForEvent("download"), page.click(`#${id}`)]);
  return fs.readFileSync(await saved.path());
}

const wavSamples = (bytes) => new Int16Array(bytes.buffer.slice(bytes.byteOffset + 44, bytes.byteOffset + bytes.length));

for (const [precision, variant, least] of [["fp32", "window", 1], ["fp16", "fp16", 0.995], ["int8", "int8", 0.94]]) {
  test(`${precision}: the codes of a file are Python's`, options, async () => {
    const page = await open();
    const { state } = await load(page, precision);
    assert.match(state, precision === "fp32" ? /codes 304 of 304 equal/ : /codes \d+ of 304 equal/);
    await give(page, CLIP, "5.0");
    const [found, wanted] = [await download(page, "save-codes"), fs.readFileSync(path.join(VARIANTS, `${variant}.made.safetensors`))];
    assert.equal(found.length, wanted.length);
    const codes = (file) => new BigInt64Array(file.buffer.slice(file.byteOffset + file.length - 8 * 8 * 63, file.byteOffset + file.length));
    const equal = codes(found).reduce((sum, code, i) => sum + Number(code === codes(wanted)[i]), 0);
    console.log(`${precision}: ${equal} of ${8 * 63} codes as in Python`);
    assert.ok(equal >= least * 8 * 63);
    if (least === 1) assert.deepEqual(found, wanted);
    await page.context().close();
  });
}

for (const file of process.env.MIMI_OUT ? process.env.MIMI_RECORDINGS.split(path.delimiter) : []) {
  test(`${path.basename(file)}, of another rate: codes and the samples that the browser makes of it`, options, async () => {
    const page = await open();
    await load(page);
    const bytes = fs.readFileSync(file).toString("base64");
    const samples = await page.evaluate(async (text) => {
      const audio = await new OfflineAudioContext(1, 1, 24_000).decodeAudioData(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
      const channels = Array.from({ length: audio.numberOfChannels }, (_, channel) => audio.getChannelData(channel));
      return [...channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length)];
    }, bytes);
    await give(page, file, (samples.length / 24_000).toFixed(1));
    const name = path.join(process.env.MIMI_OUT, path.basename(file));
    fs.writeFileSync(`${name}.f32`, Float32Array.from(samples));
    fs.writeFileSync(`${name}.safetensors`, await download(page, "save-codes"));
    await page.context().close();
  });
}

test("the built-in sample is encoded and decoded, and shown", options, async () => {
  const page = await open();
  await load(page);
  await page.click("#sample");
  await page.waitForSelector("#play:enabled", patience);
  assert.equal(await page.getAttribute("#lanes", "aria-busy"), "true", "it can be heard while it is encoded");
  await wait(page, "time", "of 19.5 s");
  await settled(page);
  assert.equal(wavSamples(await download(page, "save-wav")).length, 466_840);
  const codes = await download(page, "save-codes");
  if (process.env.MIMI_OUT) fs.writeFileSync(path.join(process.env.MIMI_OUT, "sample.safetensors"), codes);
  const colours = await page.evaluate(() =>
    ["wave-a", "wave-b", "mel-a", "mel-b", "mel-d", "codes"].map((id) => {
      const canvas = document.getElementById(id);
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size;
    }),
  );
  assert.ok(colours.every((count) => count > 2), `colours in the pictures: ${colours}`);
  assert.match(await shown(page, "code"), /^Frame \d+ \(.* s\):( \d+){8}$/);
  assert.match(await shown(page, "m-encode"), /p50 .* p95 .* max/);
  await page.context().close();
});

test("the slider changes what is heard, and X switches at the same place", options, async () => {
  const spy = (page) =>
    page.addInitScript(() => {
      const post = MessagePort.prototype.postMessage;
      window.sent = [];
      MessagePort.prototype.postMessage = function (message, ...more) {
        if (message?.signals) window.sent.push({ at: message.at, sum: message.signals[1].reduce((a, b) => a + Math.abs(b), 0), now: performance.now() });
        if (message && "pick" in message) window.sent.push(message);
        return post.call(this, message, ...more);
      };
    });
  const page = await open({ prepare: spy });
  await load(page);
  await give(page, CLIP, "5.0");
  assert.match(await shown(page, "bitrate"), /8 of 8, [\d.]+ kbit/);
  const all = wavSamples(await download(page, "save-wav"));
  await page.click("#play");
  await page.waitForTimeout(1000);
  const before = await page.evaluate(() => window.sent.length);
  const asked = await page.evaluate(() => performance.now());
  await page.focus("#codebooks");
  await page.keyboard.press("Home");
  assert.match(await shown(page, "bitrate"), /1 of 8, [\d.]+ kbit/);
  const loud = Array.from({ length: 63 }, (_, i) => all.subarray(i * 1920, (i + 1) * 1920).reduce((a, b) => a + Math.abs(b), 0) / 32768);
  const another = ([count, loudness]) => window.sent.slice(count).find(({ at, sum }) => Math.abs(sum - loudness[at / 1920]) > 0.02 * sum);
  // on a slow machine the clip may end first: play on
  await page.evaluate(() => setInterval(() => document.getElementById("play").textContent === "Play" && document.getElementById("play").click(), 300));
  const again = await (await page.waitForFunction(another, [before, loud], patience)).jsonValue();
  console.log(`after the slider moved, ${(again.now - asked).toFixed(0)} ms until another sound is about to be heard`);
  await page.keyboard.press("x");
  assert.match(await shown(page, "switch"), /original/);
  assert.equal(await page.evaluate(() => window.sent.find((message) => "pick" in message).pick), 0);
  await page.keyboard.press("x");
  await settled(page);
  const few = wavSamples(await download(page, "save-wav"));
  assert.equal(few.length, all.length);
  assert.ok(few.some((value, i) => value !== all[i]));
  await page.focus("#codebooks");
  await page.keyboard.press("End");
  await settled(page);
  const back = wavSamples(await download(page, "save-wav"));
  const other = back.findIndex((value, i) => value !== all[i]);
  assert.equal(other, -1, `with all codebooks again it is what it was, bit for bit; sample ${other} is not`);
  await page.context().close();
});

test("a backend that lies is found out and replaced", options, async () => {
  const lie = `
    export * from "./ort.wasm.min.mjs";
    import * as ort from "./ort.wasm.min.mjs";
    export const env = ort.env;
    export const InferenceSession = { async create(model, options) {
      const session = await ort.InferenceSession.create(model, { ...options, executionProviders: ["wasm"] });
      const run = session.run.bind(session);
      session.run = async (feeds) => {
        const results = await run(feeds);
        for (const tensor of Object.values(results)) if (tensor.type === "float32") tensor.data.forEach((v, i, all) => (all[i] = v * 1.001));
        return results;
      };
      return session;
    } };`;
  const prepare = async (page) => {
    await page.addInitScript(() => Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({ info: {} }) } }));
    await page.route("**/ort.webgpu.min.mjs", (route) => route.fulfill({ body: lie, contentType: "text/javascript" }));
  };
  const page = await open({ prepare });
  const { state } = await load(page, "fp32", "auto");
  assert.match(await shown(page, "attempts"), /WebGPU: not taken, it computes something else than it should: codes/);
  assert.match(state, /runs on WebAssembly.*codes 304 of 304 equal/);
  await page.context().close();
});

test("a file that was changed on the way is refused", options, async () => {
  const prepare = (page) =>
    page.route("**/decoder_model.onnx", async (route) => {
      const response = await route.fetch();
      const body = await response.body();
      body[body.length >> 1] ^= 1;
      await route.fulfill({ response, body });
    });
  const page = await open({ prepare });
  const { state, problem } = await load(page);
  assert.match(problem, /not the published one.*decoder_model.onnx was changed/);
  assert.match(state, /No model is loaded/);
  assert.equal(await page.isDisabled("#sample"), true);
  await page.context().close();
});

test("a full store is no failure, and is said", options, async () => {
  const full = "const real = caches.open.bind(caches); caches.open = async (name) => { const c = await real(name); c.put = async () => { throw new DOMException('Quota exceeded.', 'QuotaExceededError'); }; return c; };\n";
  const prepare = (page) =>
    page.route("**/worker.js", (route) => {
      const body = full + fs.readFileSync(path.join(SITE, "worker.js"), "utf8");
      return route.fulfill({ body, contentType: "text/javascript", headers: HEADERS });
    });
  const page = await open({ prepare });
  assert.match((await load(page)).state, /runs on/);
  assert.match(await shown(page, "attempts"), /not kept in cache: Quota exceeded/);
  const fetched = [];
  page.on("request", (request) => fetched.push(request.url()));
  await load(page);
  assert.ok(!fetched.some((url) => url.endsWith(".onnx")), "the second time it comes from the private file system");
  await page.context().close();
});

test("offline after the first load, and isolated without headers", options, async () => {
  const page = await open({ url: bare.url, serviceWorkers: "allow" });
  await page.waitForFunction(() => crossOriginIsolated, null, patience); // the service worker reloads the page once
  await page.waitForFunction(() => document.querySelectorAll("#variant option").length > 0, null, patience);
  await load(page);
  await page.context().setOffline(true);
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll("#variant option").length > 0, null, patience);
  const { state, problem } = await load(page);
  assert.match(state, /runs on WebAssembly.*codes 304 of 304 equal/, problem);
  await page.click("#sample");
  await wait(page, "m-decode", "p50");
  await page.context().close();
});

test("microphone: frames come live, and who denies it is told so", options, async () => {
  const page = await open({ permissions: ["microphone"] });
  await load(page);
  await page.check("#monitor");
  await page.click("#mic");
  await wait(page, "time", "of [4-9].\\d s");
  await page.evaluate(() => document.activeElement.blur());
  for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowLeft");
  const behind = () => page.evaluate(() => document.getElementById("time").textContent.split(" of ").map(parseFloat).reduce((at, end) => end - at));
  await page.waitForTimeout(1500);
  assert.ok((await behind()) < 1.6, "who hears it live stays at its end");
  await page.click("#mic");
  await wait(page, "mic", "^Microphone");
  assert.match(await shown(page, "code"), /Frame/);
  await page.evaluate(() => (navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); }));
  await page.click("#mic");
  await wait(page, "problem", "told not to let this page hear the microphone");
  await page.context().close();
});

test("codes in, and what cannot be read is said plainly", options, async () => {
  const page = await open();
  await load(page);
  await give(page, path.join(VARIANTS, "window.made.safetensors"), "5.0");
  assert.equal(wavSamples(await download(page, "save-wav")).length, 120_720);
  await page.setInputFiles("#open", { name: "no.wav", mimeType: "audio/wav", buffer: Buffer.from("no sound") });
  await wait(page, "problem", "cannot read this file as sound");
  await page.setInputFiles("#open", { name: "no.safetensors", mimeType: "", buffer: Buffer.from("no") });
  await wait(page, "problem", "These codes cannot be decoded");
  await page.route("**/manifest.json", (route) => route.fulfill({ status: 404 }));
  await load(page);
  await wait(page, "problem", "A file of the model is not there");
  await page.context().close();
});

test("no violation that axe knows, in both themes and on a phone", options, async () => {
  const axe = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  for (const [colorScheme, viewport] of [["light", { width: 1280, height: 900 }], ["dark", { width: 1280, height: 900 }], ["light", { width: 390, height: 844 }]]) {
    const page = await open({ colorScheme, viewport });
    await load(page);
    await give(page, CLIP, "5.0");
    await page.evaluate(axe);
    const { violations, passes } = await page.evaluate(() => window.axe.run());
    assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html)}`), []);
    assert.ok(passes.length > 20);
    const wide = (width) => [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width).map((e) => e.id || e.tagName);
    assert.deepEqual(await page.evaluate(wide, viewport.width), [], "nothing overflows");
    await page.context().close();
  }
});
