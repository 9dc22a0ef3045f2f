// A client that knows only the published contract: state_spec.txt, zeros first, outputs back in by position.
//
//   node stream.mjs DIRECTORY SAMPLES.f32 OUT_PREFIX FRAMES_PER_CALL LAYERS HEADS HEAD_DIM
//
// Writes OUT_PREFIX.codes.json {dims, data} with the codes of all calls, and OUT_PREFIX.audio.f32 decoded from them.
import fs from "node:fs";
import * as ort from "onnxruntime-node";

const [directory, input, output, ...numbers] = process.argv.slice(2);
const [framesPerCall, layers, heads, headDim] = numbers.map(Number);
const FRAME = 1920;

function convStates(section) {
  const states = [];
  let inside = false;
  for (const line of fs.readFileSync(`${directory}/state_spec.txt`, "utf8").split("\n")) {
    if (line.startsWith("[")) inside = line === `[${section}]`;
    else if (inside && line) {
      const [, name, channels, size] = line.split(" ");
      states.push([`conv_${name}_state`, [1, Number(channels), Number(size)]]);
    }
  }
  return states;
}

async function open(section, dataIn, dataOut) {
  const session = await ort.InferenceSession.create(`${directory}/${section}_model.onnx`, { intraOpNumThreads: 1 });
  const states = convStates(section);
  for (let layer = 0; layer < layers; layer++)
    for (const word of ["key", "value"]) states.push([`${word}_${layer}`, [1, heads, 0, headDim]]);
  const inputs = [dataIn, ...states.map(([name]) => `past_${name}`)];
  const outputs = [dataOut, ...states.map(([name]) => `present_${name}`)];
  if (String(session.inputNames) !== String(inputs)) throw new Error(`inputs are ${session.inputNames}`);
  if (String(session.outputNames) !== String(outputs)) throw new Error(`outputs are ${session.outputNames}`);
  let tensors = states.map(([, shape]) => {
    return new ort.Tensor("float32", new Float32Array(shape.reduce((product, size) => product * size, 1)), shape);
  });
  return async (data) => {
    const feeds = Object.fromEntries(inputs.map((name, index) => [name, index ? tensors[index - 1] : data]));
    const results = await session.run(feeds);
    tensors = outputs.slice(1).map((name) => results[name]);
    return results[dataOut];
  };
}

const bytes = fs.readFileSync(input);
const samples = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const encode = await open("encoder", "input_values", "audio_codes");
const decode = await open("decoder", "audio_codes", "audio_values");
const frames = samples.length / FRAME;
let codes = null;
const audio = [];
for (let start = 0; start < frames; start += framesPerCall) {
  const count = Math.min(framesPerCall, frames - start);
  const block = samples.slice(start * FRAME, (start + count) * FRAME);
  const result = await encode(new ort.Tensor("float32", block, [1, 1, block.length]));
  const books = result.dims[1];
  codes ??= Array.from({ length: books }, () => []);
  for (let book = 0; book < books; book++)
    for (let frame = 0; frame < count; frame++) codes[book].push(Number(result.data[book * count + frame]));
  audio.push((await decode(result)).data.slice());
}
fs.writeFileSync(`${output}.codes.json`, JSON.stringify({ dims: [1, codes.length, frames], data: codes.flat() }));
fs.writeFileSync(`${output}.audio.f32`, Buffer.concat(audio.map((part) => new Uint8Array(part.buffer))));
