// transformers.js itself on a local directory: samples in, codes and audio out.
//
//   node whole_clips.mjs DIRECTORY DTYPE SAMPLES.f32 OUT_PREFIX
//
// Writes OUT_PREFIX.codes.json {dims, data} and OUT_PREFIX.audio.f32.
import fs from "node:fs";
import path from "node:path";
import { AutoModel, AutoProcessor, env } from "@huggingface/transformers";

const [directory, dtype, input, output] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(directory)) + path.sep;
const name = path.basename(directory);

const options = dtype === "default" ? {} : { dtype };
const model = await AutoModel.from_pretrained(name, options);
const processor = await AutoProcessor.from_pretrained(name);
const bytes = fs.readFileSync(input);
const samples = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const { audio_codes } = await model.encode(await processor(samples));
const { audio_values } = await model.decode({ audio_codes });
fs.writeFileSync(`${output}.codes.json`, JSON.stringify({ dims: audio_codes.dims, data: [...audio_codes.data].map(Number) }));
const audio = audio_values.data;
fs.writeFileSync(`${output}.audio.f32`, new Uint8Array(audio.buffer, audio.byteOffset, audio.byteLength));
