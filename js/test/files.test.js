import assert from "node:assert/strict";
import fs from "node:fs";
import http from "node:http";
import { clear, load, readCodes, readWav, writeCodes, writeWav } from "mimi-onnx";
import { FileCache, MemoryStore } from "../dist/cache.js";
import { parseManifest } from "../dist/manifest.js";
import { names, options, test, variant } from "./helpers.js";

test("over http: bytes of progress, and the second time nothing but the manifest is fetched", options, async () => {
  const root = variant(names[0]);
  const asked = [];
  const server = http.createServer((request, response) => {
    asked.push(request.url);
    const path = root + request.url;
    if (!fs.existsSync(path)) return response.writeHead(404).end();
    fs.createReadStream(path).pipe(response);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const url = `http://127.0.0.1:${server.address().port}`;
  const seen = [];
  const first = await load(url, { onProgress: (progress) => seen.push(progress) });
  const { files, graphs } = first.manifest;
  const total = [...Object.values(graphs).map((graph) => graph.file), "golden.safetensors"].reduce((sum, name) => sum + files[name].bytes, 0);
  assert.equal(seen.at(-1).loaded, total);
  assert.ok(seen.every((progress, i) => progress.total === total && (i === 0 || progress.loaded >= seen[i - 1].loaded)));
  assert.equal(asked.length, 4);
  assert.equal(first.cache.kind, "memory");
  seen.length = 0;
  await load(url, { onProgress: (progress) => seen.push(progress) });
  assert.deepEqual(asked.slice(4), ["/manifest.json"]);
  assert.equal(seen.at(-1).cached, total);
  await clear();
  await load(url);
  assert.equal(asked.length, 9);
  await assert.rejects(load(`${url}/elsewhere`), { fault: "missing", message: /404/ });
  server.close();
  server.closeAllConnections();
  assert.equal((await load(url)).manifest.name, first.manifest.name, "without a connection, from the cache");
  await clear();
  await assert.rejects(load(url), { fault: "network" });
});

test("a store without room is passed over, and another version takes the place of the old", async () => {
  const full = { kind: "cache", get: async () => undefined, put: async () => { throw new Error("QuotaExceededError"); }, delete: async () => {}, clear: async () => {} };
  const cache = new FileCache([full, new MemoryStore()]);
  await cache.put({ url: "a", version: "1" }, new Blob(["one"]));
  assert.equal(cache.kind, "memory");
  assert.deepEqual(cache.refusals, ["cache: QuotaExceededError"]);
  assert.equal(await (await cache.get({ url: "a", version: "1" })).text(), "one");
  await cache.put({ url: "a", version: "2" }, new Blob(["two"]));
  assert.equal(await cache.get({ url: "a", version: "1" }), undefined);
  await cache.clear();
  assert.equal(await cache.get({ url: "a", version: "2" }), undefined);
});

test("WAV there and back, and what is none", () => {
  const samples = Float32Array.of(0, 0.5, -1, 32767 / 32768, 2);
  const { samples: read, rate } = readWav(writeWav(samples, 24000));
  assert.equal(rate, 24000);
  assert.deepEqual([...read], [0, 0.5, -1, 32767 / 32768, 32767 / 32768]);
  for (const bytes of [new Uint8Array(0), new Uint8Array(100), writeWav(samples, 1).slice(0, 30)]) {
    assert.throws(() => readWav(bytes), { fault: "audio" });
  }
});

test("codes there and back, and what is none", () => {
  const manifest = { geometry: { sampling_rate: 24000 }, frameSize: 1920, source: { model: "démo" } };
  const codes = { data: Int32Array.of(1, 2, 3, 2047, 0, 5), codebooks: 2, frames: 3 };
  const file = writeCodes(codes, manifest, 4000);
  assert.deepEqual(readCodes(file), { ...codes, samples: 4000 });
  assert.equal(new DataView(file.buffer).getBigUint64(0, true) % 8n, 0n);
  for (const bytes of [new Uint8Array(3), file.slice(0, 40), file.slice(0, -1)]) assert.throws(() => readCodes(bytes), { fault: "codes" });
});

test("a manifest that this package does not run says why", options, () => {
  const text = fs.readFileSync(`${variant(names[0])}/manifest.json`, "utf8");
  const changed = (change) => {
    const raw = JSON.parse(text);
    change(raw);
    return () => parseManifest(JSON.stringify(raw), "it");
  };
  assert.equal(parseManifest(text, "it").frameSize, 1920);
  assert.throws(() => parseManifest("<html>", "it"), { fault: "manifest", message: /no JSON/ });
  assert.throws(changed((raw) => (raw.format_version = 2)), /format_version 2/);
  assert.throws(changed((raw) => (raw.num_codebooks = 0)), /latents/);
  assert.throws(changed((raw) => (raw.batch = 3)), /batch of 3/);
  assert.throws(changed((raw) => delete raw.files["golden.safetensors"]), /golden/);
  assert.throws(changed((raw) => (raw.graphs.encoder.file = "../x")), /leads out/);
  assert.throws(changed((raw) => delete raw.graphs.encoder.states), /tensors/);
});
