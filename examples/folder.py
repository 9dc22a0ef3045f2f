"""Encode every recording of a folder, nine frames a call, and say what it saves.

python examples/folder.py artifacts/streaming-8cb recordings codes
"""

import sys
from pathlib import Path

from mimi_export import load
from mimi_export.errors import AudioError
from mimi_export.media.audio import AudioReader
from mimi_export.media.codes import CodesMetadata, CodesWriter

FRAMES = 9  # in a call: a frame then takes less than half the time that it takes alone

variant, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
codec = load(variant)
geometry = codec.geometry
target.mkdir(exist_ok=True)
for path in sorted(path for path in source.iterdir() if path.is_file()):
    metadata = CodesMetadata(geometry.sampling_rate, geometry.frame_size, model=codec.artifact.manifest.source.model)
    try:
        with (
            AudioReader(path, geometry.sampling_rate, FRAMES * geometry.frame_size) as reader,
            CodesWriter(target / f"{path.stem}.safetensors", metadata, force=True) as writer,
        ):
            stream = codec.encoder.stream()
            for block in reader:
                writer.append(stream.push(block)[0])
            writer.append(stream.flush().codes[0])
            writer.num_samples = stream.num_samples
    except AudioError as error:
        print(f"left out: {error}")
        continue
    seconds = writer.num_samples / geometry.sampling_rate
    bits = geometry.bitrate(codec.encoder.spec.shape.num_codebooks)
    print(f"{path.name}: {seconds:.1f} s, {seconds * bits / 8:.0f} bytes of codes")
