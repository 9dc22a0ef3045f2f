import sys

from mimi_export.media.audio import AudioWriter, read_audio
from mimi_export.runtime import load

directory, source, target = sys.argv[1:]
codec = load(directory)  # one thread: more of them cost twice the processor for no time
encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
audio = read_audio(source, codec.geometry.sampling_rate)  # any format and rate -> mono float32 [samples]

with AudioWriter(target, codec.geometry.sampling_rate, force=True) as writer:
    for start in range(0, len(audio), 1000):  # blocks of any length, as a microphone gives them
        codes = encoder.push(audio[start : start + 1000])  # int64 [1, codebooks, frames that are ready]
        writer.write(decoder.push(codes)[0])
    last = encoder.flush()  # fills the last frame with zeros
    writer.write(decoder.push(last.codes)[0])
