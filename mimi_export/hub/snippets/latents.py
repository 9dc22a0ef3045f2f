import sys

import numpy as np

from mimi_export.media.audio import read_audio
from mimi_export.runtime import load

directory, source, target = sys.argv[1:]
codec = load(directory)
encoder = codec.encoder.latents()
audio = read_audio(source, codec.geometry.sampling_rate)  # any format and rate -> mono float32 [samples]

latents = []
for start in range(0, len(audio), 1000):  # blocks of any length, as a microphone gives them
    latents.append(encoder.push(audio[start : start + 1000]))  # float32 [1, frames that are ready, channels]
latents.append(encoder.flush().latents)  # fills the last frame with zeros
np.save(target, np.concatenate(latents, axis=1)[0])
