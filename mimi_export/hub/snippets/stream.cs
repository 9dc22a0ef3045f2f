using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

const int Frame = 1920; // samples at 24000 Hz

var (directory, source, target) = (args[0], args[1], args[2]);
short[] samples = ReadWav(source);
using var manifest = JsonDocument.Parse(File.ReadAllText(Path.Combine(directory, "manifest.json")));
using var encoder = new MimiStream(directory, manifest.RootElement.GetProperty("graphs").GetProperty("encoder"));
using var decoder = new MimiStream(directory, manifest.RootElement.GetProperty("graphs").GetProperty("decoder"));
using var output = new BinaryWriter(File.Create(target));
for (int start = 0; start < samples.Length; start += Frame)
{
    var frame = new float[Frame]; // the last one is filled with zeros
    for (int i = 0; i < Math.Min(Frame, samples.Length - start); i++) frame[i] = samples[start + i] / 32768f;
    using var audio = OrtValue.CreateTensorValueFromMemory(frame, new long[] { 1, 1, Frame });
    using var codes = encoder.Call(audio); // long [1, codebooks, 1]
    using var decoded = decoder.Call(codes);
    foreach (float value in decoded.GetTensorDataAsSpan<float>()) output.Write(value);
}

static short[] ReadWav(string path)
{
    byte[] wav = File.ReadAllBytes(path);
    var (channels, rate, bits) = (BitConverter.ToInt16(wav, 22), BitConverter.ToInt32(wav, 24), BitConverter.ToInt16(wav, 34));
    if (channels != 1 || rate != 24000 || bits != 16)
        throw new InvalidDataException($"{path}: expected 24000 Hz, mono, 16 bit");
    int start = 12; // chunks of a name, a size and content
    while (BitConverter.ToUInt32(wav, start) != 0x61746164) start += 8 + BitConverter.ToInt32(wav, start + 4); // "data"
    var samples = new short[BitConverter.ToInt32(wav, start + 4) / 2];
    Buffer.BlockCopy(wav, start + 8, samples, 0, 2 * samples.Length);
    return samples;
}

sealed class MimiStream : IDisposable
{
    readonly InferenceSession session;
    readonly RunOptions options = new();
    readonly List<string> inputs = new(), outputs = new();
    List<OrtValue> states = new();

    public MimiStream(string directory, JsonElement graph)
    {
        using var one = new SessionOptions { IntraOpNumThreads = 1 }; // more cost twice the processor for no time
        session = new InferenceSession(Path.Combine(directory, graph.GetProperty("file").GetString()!), one);
        inputs.AddRange(graph.GetProperty("inputs").EnumerateArray().Select(i => i.GetProperty("name").GetString()!));
        outputs.AddRange(graph.GetProperty("outputs").EnumerateArray().Select(o => o.GetProperty("name").GetString()!));
        foreach (var state in graph.GetProperty("states").EnumerateArray())
        {
            // the first size is the batch; keys and values begin with length 0
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
