import fs from "node:fs";
import * as ort from "onnxruntime-node"; // in a browser: onnxruntime-web, and fetch() instead of fs

const [directory, source, target] = process.argv.slice(2);
const manifest = JSON.parse(fs.readFileSync(`${directory}/manifest.json`, "utf8"));

async function stream(kind) {
  const graph = manifest.graphs[kind];
  const options = { intraOpNumThreads: 1 }; // more of them cost twice the processor for no time
  const session = await ort.InferenceSession.create(`${directory}/${graph.file}`, options);
  let states = {};
  for (const { past, initial_shape } of graph.states) {
    const shape = [1, ...initial_shape.slice(1)]; // a batch of one; keys and values begin with length 0
    const size = shape.reduce((product, n) => product * n, 1);
    states[past] = new ort.Tensor("float32", new Float32Array(size), shape);
  }
  return async (data) => {
    const outputs = await session.run({ [graph.inputs[0].name]: data, ...states });
    states = Object.fromEntries(graph.states.map(({ past, present }) => [past, outputs[present]]));
    return outputs[graph.outputs[0].name];
  };
}

function readWav(path) {
  const wav = fs.readFileSync(path);
  const [channels, rate, bits] = [wav.readUInt16LE(22), wav.readUInt32LE(24), wav.readUInt16LE(34)];
  if (channels !== 1 || rate !== 24000 || bits !== 16) throw new Error(`${path}: expected 24000 Hz, mono, 16 bit`);
  let start = 12; // chunks of a name, a size and content
  while (wav.toString("latin1", start, start + 4) !== "data") start += 8 + wav.readUInt32LE(start + 4);
  const length = wav.readUInt32LE(start + 4) >> 1;
  return Float32Array.from({ length }, (_, i) => wav.readInt16LE(start + 8 + 2 * i) / 32768);
}

const samples = readWav(source);
const [encode, decode] = [await stream("encoder"), await stream("decoder")];
const decoded = [];
for (let start = 0; start < samples.length; start += 1920) {
  const frame = new Float32Array(1920); // the last one is filled with zeros
  frame.set(samples.subarray(start, start + 1920));
  const codes = await encode(new ort.Tensor("float32", frame, [1, 1, 1920])); // int64 [1, codebooks, 1]
  decoded.push(new Uint8Array((await decode(codes)).data.slice().buffer));
}
fs.writeFileSync(target, Buffer.concat(decoded));
