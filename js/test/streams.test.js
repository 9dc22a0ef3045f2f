import assert from "node:assert/strict";
import fs from "node:fs";
import { cut, firstCodebooks, joinCodes, load, readCodes, readWav, writeCodes } from "mimi-onnx";
import { clips, expected, names, options, test, variant, wav } from "./helpers.js";

/** Sizes of pieces that fall anywhere in frames and calls; none and one are among them. */
function* sizes(seed) {
  for (let x = seed; ; ) {
    x = (x * 1103515245 + 12345) % 2 ** 31;
    yield [0, 1, 1919, 1920, 1921, 4000, 100000][x % 7];
  }
}

async function encode(stream, samples, seed) {
  const parts = [];
  let at = 0;
  for (const size of sizes(seed)) {
    if (at >= samples.length) break;
    parts.push(await stream.push(samples.subarray(at, at + size)));
    at += size;
  }
  const { codes, realSamples } = await stream.flush();
  return { codes: joinCodes([...parts, codes], codes.codebooks), realSamples };
}

for (const name of names) {
  test(`${name}: codes of any pieces are Python's`, options, async () => {
    const codec = await load(variant(name));
    for (const clip of clips) {
      const { samples, rate } = readWav(wav(clip));
      assert.equal(rate, codec.manifest.geometry.sampling_rate);
      const right = expected(name, clip);
      const stream = await codec.encoder.stream();
      const { codes } = await encode(stream, samples, 1 + clip.length);
      const wanted = readCodes(right);
      const equal = codes.data.reduce((sum, code, i) => sum + Number(code === wanted.data[i]), 0);
      assert.equal(codes.data.length, wanted.data.length);
      // fp32 and fp16 give the same codes everywhere; in int8 the float parts round as the build of onnxruntime does
      const least = codec.manifest.precision === "int8" ? 0.97 : 1;
      console.log(`${name} ${clip}: ${equal} of ${codes.data.length} codes as in Python`);
      assert.ok(equal >= least * codes.data.length, `${equal} of ${codes.data.length}`);
      if (least === 1) assert.deepEqual(writeCodes(codes, codec.manifest, samples.length), right, "the file, byte for byte");
    }
    await codec.close();
  });

  test(`${name}: pieces, snapshots and codebooks of the decoder`, options, async () => {
    const codec = await load(variant(name));
    const { samples } = readWav(wav(clips[0]));
    const encoder = await codec.encoder.stream();
    const codes = await encoder.push(samples.subarray(0, 1920 * 30));
    const unit = codec.manifest.frames_per_call ?? 1;
    const piece = (i) => cut(codes, i, i + unit);
    const decoder = await codec.decoder.stream();
    const whole = await decoder.push(codes);
    assert.equal(whole.length, codes.frames * codec.manifest.frameSize);
    await decoder.reset();
    const most = codec.manifest.precision === "int8" ? 1e-3 : 1e-4; // rounding; in int8 it may turn an 8-bit number
    let worst = 0;
    let kept;
    for (let i = 0; i < codes.frames; i += unit) {
      if (i === 12) kept = await decoder.snapshot();
      const audio = await decoder.push(piece(i));
      audio.forEach((value, at) => (worst = Math.max(worst, Math.abs(value - whole[i * 1920 + at]))));
    }
    assert.ok(worst < most, `frame by frame differs by ${worst}`);
    await decoder.restore(kept);
    const again = await decoder.push(piece(12));
    assert.ok(again.every((value, at) => Math.abs(value - whole[12 * 1920 + at]) < most));
    await decoder.restore(kept);
    const few = await decoder.push(firstCodebooks(piece(12), 1));
    assert.ok(few.some((value, at) => Math.abs(value - again[at]) > most), "one codebook sounds different");

    const twin = await codec.encoder.stream();
    await twin.restore(await encoder.snapshot());
    const rest = samples.subarray(1920 * 30, 1920 * 40 + 7);
    assert.deepEqual(await twin.push(rest), await encoder.push(rest));
    assert.deepEqual(await twin.flush(), await encoder.flush());
    await assert.rejects(encoder.push(rest), { fault: "stream" });
    await encoder.reset();
    assert.equal((await encoder.flush()).codes.frames, 0);
    await codec.close();
  });
}

test("the timings of a push are its calls'", options, async () => {
  const codec = await load(variant(names[0]));
  const stream = await codec.encoder.stream();
  await stream.push(new Float32Array(1920 * 2));
  assert.equal(stream.timings.reduce((sum, { frames }) => sum + frames, 0), 2);
  assert.ok(stream.timings.every(({ milliseconds }) => milliseconds > 0));
});

test("what cannot be taken is refused, and the stream goes on", options, async () => {
  const codec = await load(variant(names[0]));
  const [encoder, decoder] = [await codec.encoder.stream(), await codec.decoder.stream()];
  await assert.rejects(encoder.push(Float32Array.of(0, NaN)), { fault: "audio", message: /sample 1 is NaN/ });
  const codes = await encoder.push(new Float32Array(1920 * 2));
    const bad = (data, codebooks, frames) => decoder.push({ data: Int32Array.from(data), codebooks, frames });
  await assert.rejects(bad([0, -1], 2, 1), { fault: "codes", message: /codebook 1, frame 0/ });
  await assert.rejects(bad([99999], 1, 1), { fault: "codes", message: /out of range/ });
  await assert.rejects(bad(Array(99).fill(0), 99, 1), { fault: "codes", message: /takes 1 to/ });
  await assert.rejects(bad([0, 0], 1, 1), { fault: "codes" });
  assert.equal((await decoder.push(codes)).length, 1920 * 2);
});

test("a file that was changed is refused", options, async () => {
  const copy = fs.mkdtempSync("/tmp/mimi-onnx-");
  fs.cpSync(variant(names[0]), copy, { recursive: true });
  const file = `${copy}/decoder_model.onnx`;
  const bytes = fs.readFileSync(file);
  bytes[bytes.length >> 1] ^= 1;
  fs.writeFileSync(file, bytes);
  await assert.rejects(load(copy), { fault: "hash", message: /decoder_model.onnx was changed/ });
  fs.writeFileSync(file, bytes.subarray(1));
  await assert.rejects(load(copy), { fault: "hash", message: /bytes/ });
  fs.rmSync(file);
  await assert.rejects(load(copy), { fault: "missing" });
  fs.rmSync(copy, { recursive: true });
  await assert.rejects(load(copy), { fault: "missing" });
});

test("an onnxruntime that lies is found out", options, async () => {
  const honest = await import("onnxruntime-node");
  const lying = {
    Tensor: honest.Tensor,
    InferenceSession: {
      async create(...args) {
        const session = await honest.InferenceSession.create(...args);
        const run = session.run.bind(session);
        session.run = async (feeds) => {
          const results = await run(feeds);
          for (const tensor of Object.values(results)) if (tensor.type === "float32") tensor.data.forEach((v, i, all) => (all[i] = v * 1.02));
          return results;
        };
        return session;
      },
    },
  };
  await assert.rejects(load(variant("window"), { ort: lying }), { fault: "backend", message: /computes something else/ });
});
