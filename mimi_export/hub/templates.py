"""The programs of the model card as templates; `@WORDS@` are filled in by `snippets`."""

PYTHON = """
from mimi_export.media.audio import AudioWriter, read_audio
from mimi_export.runtime import load

codec = load("@DIRECTORY@")
encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
audio = read_audio("speech.wav")  # any format and rate -> @RATE@ Hz mono float32 [samples]

with AudioWriter("decoded.wav", force=True) as writer:
    for start in range(0, len(audio), 1000):  # blocks of any length, as a microphone gives them
        codes = encoder.push(audio[start : start + 1000])  # int64 [1, @CODEBOOKS@, frames that are ready]
        writer.write(decoder.push(codes)[0])
    last = encoder.flush()  # fills the last frame with zeros
    writer.write(decoder.push(last.codes)[0])
"""

BARE = """
import wave
import numpy as np
import onnxruntime as ort

def stream(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]  # the data, then the states
    free = {"@BATCH@": 1, "@PAST_LENGTH@": 0}  # one stream; keys and values of length 0
    states = [np.zeros([free.get(size, size) for size in tensor.shape], np.float32)
              for tensor in session.get_inputs()[1:]]
    def call(data):
        result, *states[:] = session.run(None, dict(zip(names, [data, *states])))
        return result
    return call

encode, decode = stream("@DIRECTORY@/@ENCODER@"), stream("@DIRECTORY@/@DECODER@")
with wave.open("speech.wav") as file:  # @RATE@ Hz, mono, 16 bit
    audio = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
frames = np.pad(audio, (0, -len(audio) % @FRAME@)).reshape(-1, 1, 1, @FRAME@)
codes = [encode(frame) for frame in frames]  # int64 [1, @CODEBOOKS@, 1] each
decoded = np.concatenate([decode(code) for code in codes], axis=2)[0, 0]
with wave.open("decoded.wav", "wb") as file:
    file.setparams((1, 2, @RATE@, 0, "NONE", ""))
    file.writeframes((decoded.clip(-1, 1) * 32767).astype(np.int16).tobytes())
"""

JAVASCRIPT = """
import fs from "node:fs";
import * as ort from "onnxruntime-node"; // in a browser: onnxruntime-web, and fetch() instead of fs

const directory = "@DIRECTORY@";
const manifest = JSON.parse(fs.readFileSync(`${directory}/manifest.json`, "utf8"));

async function stream(kind) {
  const graph = manifest.graphs[kind];
  const session = await ort.InferenceSession.create(`${directory}/${graph.file}`);
  let states = {};
  for (const { past, dtype, initial_shape } of graph.states) {
    const shape = [1, ...initial_shape.slice(1)]; // a batch of one; keys and values have length 0
    const size = shape.reduce((product, n) => product * n, 1);
    const zeros = dtype === "int64" ? new BigInt64Array(size) : new Float32Array(size);
    states[past] = new ort.Tensor(dtype, zeros, shape);
  }
  return async (data) => {
    const outputs = await session.run({ [graph.inputs[0].name]: data, ...states });
    states = Object.fromEntries(graph.states.map(({ past, present }) => [past, outputs[present]]));
    return outputs[graph.outputs[0].name];
  };
}

const wav = fs.readFileSync("speech.wav"); // @RATE@ Hz, mono, 16 bit, a header of 44 bytes
const length = (wav.length - 44) >> 1;
const samples = Float32Array.from({ length }, (_, i) => wav.readInt16LE(44 + 2 * i) / 32768);
const [encode, decode] = [await stream("encoder"), await stream("decoder")];
const decoded = [];
for (let start = 0; start < samples.length; start += @FRAME@) {
  const frame = new Float32Array(@FRAME@); // the last one is filled with zeros
  frame.set(samples.subarray(start, start + @FRAME@));
  const codes = await encode(new ort.Tensor("float32", frame, [1, 1, @FRAME@])); // int64 [1, @CODEBOOKS@, 1]
  decoded.push((await decode(codes)).data);
}
const bytes = decoded.map((block) => new Uint8Array(block.slice().buffer));
fs.writeFileSync("decoded.f32", Buffer.concat(bytes));
"""

RUST = """
use ort::{memory::Allocator, session::Session, value::{DynValue, Tensor}};
use std::{error::Error, fs};

const DIRECTORY: &str = "@DIRECTORY@";
const FRAME: usize = @FRAME@; // samples at @RATE@ Hz
const LAYERS: usize = @LAYERS@;
const HEADS: usize = @HEADS@; // of keys and values
const HEAD_DIM: usize = @HEAD_DIM@;

struct Stream {
    session: Session,
    names: Vec<String>,
    states: Vec<DynValue>,
}

impl Stream {
    fn new(kind: &str) -> Result<Self, Box<dyn Error>> {
        let (mut names, mut states, mut inside) = (Vec::new(), Vec::new(), false);
        for line in fs::read_to_string(format!("{DIRECTORY}/state_spec.txt"))?.lines() {
            if line.starts_with('[') {
                inside = line == format!("[{kind}]");
            } else if inside && !line.is_empty() {
                let words: Vec<&str> = line.split(' ').collect(); // type name channels temporal_size
                let (channels, size): (usize, usize) = (words[2].parse()?, words[3].parse()?);
                names.push(format!("@CONV_HEAD@{}@CONV_TAIL@", words[1]));
                states.push(Tensor::from_array(([1, channels, size], vec![0f32; channels * size]))?.into_dyn());
            }
        }
        for layer in 0..LAYERS {
            for word in ["@KEY@", "@VALUE@"] {
                names.push(format!("{word}_{layer}"));
                let empty = Tensor::<f32>::new(&Allocator::default(), [1usize, HEADS, 0, HEAD_DIM])?;
                states.push(empty.into_dyn());
            }
        }
        let path = format!("{DIRECTORY}/{kind}_model.onnx");
        let session = Session::builder()?.with_intra_threads(1)?.commit_from_file(path)?;
        Ok(Self { session, names, states })
    }

    fn call(&mut self, input: &str, output: &str, data: DynValue) -> Result<DynValue, Box<dyn Error>> {
        let mut feeds = vec![(input.to_string(), data)];
        feeds.extend(self.names.iter().map(|name| format!("@PAST@{name}")).zip(self.states.drain(..)));
        let mut outputs = self.session.run(feeds)?;
        for name in &self.names {
            self.states.push(outputs.remove(format!("@PRESENT@{name}")).ok_or("a state is missing")?);
        }
        Ok(outputs.remove(output).ok_or("the result is missing")?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let wav = fs::read("speech.wav")?; // @RATE@ Hz, mono, 16 bit, a header of 44 bytes
    let values = wav[44..].chunks_exact(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]]));
    let samples: Vec<f32> = values.map(|value| value as f32 / 32768.0).collect();
    let (mut encoder, mut decoder) = (Stream::new("encoder")?, Stream::new("decoder")?);
    let mut decoded: Vec<u8> = Vec::new();
    for chunk in samples.chunks(FRAME) {
        let mut frame = chunk.to_vec();
        frame.resize(FRAME, 0.0); // the last one is filled with zeros
        let audio = Tensor::from_array(([1, 1, FRAME], frame))?.into_dyn();
        let codes = encoder.call("@AUDIO_IN@", "@CODES_OUT@", audio)?; // i64 [1, @CODEBOOKS@, 1]
        let result = decoder.call("@CODES_IN@", "@AUDIO_OUT@", codes)?;
        let (_, values) = result.try_extract_tensor::<f32>()?;
        decoded.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    fs::write("decoded.f32", decoded)?;
    Ok(())
}
"""

CSHARP = """
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

const string Folder = "@DIRECTORY@";
const int Frame = @FRAME@; // samples at @RATE@ Hz

byte[] wav = File.ReadAllBytes("speech.wav"); // @RATE@ Hz, mono, 16 bit, a header of 44 bytes
using var manifest = JsonDocument.Parse(File.ReadAllText($"{Folder}/manifest.json"));
using var encoder = new MimiStream(Folder, manifest.RootElement.GetProperty("graphs").GetProperty("encoder"));
using var decoder = new MimiStream(Folder, manifest.RootElement.GetProperty("graphs").GetProperty("decoder"));
using var output = new BinaryWriter(File.Create("decoded.f32"));
int count = (wav.Length - 44) / 2;
for (int start = 0; start < count; start += Frame)
{
    var frame = new float[Frame]; // the last one is filled with zeros
    for (int i = 0; i < Math.Min(Frame, count - start); i++)
        frame[i] = BitConverter.ToInt16(wav, 44 + 2 * (start + i)) / 32768f;
    using var audio = OrtValue.CreateTensorValueFromMemory(frame, new long[] { 1, 1, Frame });
    using var codes = encoder.Call(audio); // long [1, @CODEBOOKS@, 1]
    using var decoded = decoder.Call(codes);
    foreach (float value in decoded.GetTensorDataAsSpan<float>()) output.Write(value);
}

sealed class MimiStream : IDisposable
{
    readonly InferenceSession session;
    readonly RunOptions options = new();
    readonly List<string> inputs = new(), outputs = new();
    List<OrtValue> states = new();

    public MimiStream(string directory, JsonElement graph)
    {
        session = new InferenceSession(Path.Combine(directory, graph.GetProperty("file").GetString()!));
        inputs.AddRange(graph.GetProperty("inputs").EnumerateArray().Select(i => i.GetProperty("name").GetString()!));
        outputs.AddRange(graph.GetProperty("outputs").EnumerateArray().Select(o => o.GetProperty("name").GetString()!));
        foreach (var state in graph.GetProperty("states").EnumerateArray())
        {
            // the first size is the batch; keys and values have length 0
            long[] shape = state.GetProperty("initial_shape").EnumerateArray()
                .Select((size, axis) => axis == 0 ? 1L : size.GetInt64()).ToArray();
            var zeros = OrtValue.CreateAllocatedTensorValue(
                OrtAllocator.DefaultInstance, TensorElementType.Float, shape);
            if (!shape.Contains(0)) zeros.GetTensorMutableDataAsSpan<float>().Clear();
            states.Add(zeros);
        }
    }

    public OrtValue Call(OrtValue data)
    {
        var feeds = states.Prepend(data).ToList();
        var results = session.Run(options, inputs, feeds, outputs).ToList(); // each is ours to dispose of
        foreach (var state in states) state.Dispose();
        states = results.Skip(1).ToList();
        return results[0];
    }

    public void Dispose()
    {
        foreach (var state in states) state.Dispose();
        options.Dispose();
        session.Dispose();
    }
}
"""

WHOLE = """
import { AutoProcessor, MimiModel } from "@huggingface/transformers";

const model = await MimiModel.from_pretrained("@REPO@", { dtype: "@DTYPE@" });
const processor = await AutoProcessor.from_pretrained("@REPO@");

const samples = new Float32Array(3 * @RATE@); // your audio: @RATE@ Hz, mono, any length
for (let i = 0; i < samples.length; i++) samples[i] = 0.3 * Math.sin((2 * Math.PI * 220 * i) / @RATE@);

const { audio_codes } = await model.encode(await processor(samples));
const { audio_values } = await model.decode({ audio_codes });
console.log(audio_codes.dims, audio_values.dims);
"""
