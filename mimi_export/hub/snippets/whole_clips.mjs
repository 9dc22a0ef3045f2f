import { AutoProcessor, MimiModel } from "@huggingface/transformers";

const [repository, dtype] = process.argv.slice(2);
const model = await MimiModel.from_pretrained(repository, { dtype });
const processor = await AutoProcessor.from_pretrained(repository);

const samples = new Float32Array(3 * 24000); // your audio: 24000 Hz, mono, any length
for (let i = 0; i < samples.length; i++) samples[i] = 0.3 * Math.sin((2 * Math.PI * 220 * i) / 24000);

const { audio_codes } = await model.encode(await processor(samples));
const { audio_values } = await model.decode({ audio_codes });
console.log(audio_codes.dims, audio_values.dims);
