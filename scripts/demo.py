"""Encode and decode a recording frame by frame through ONNX Runtime, as an application with a microphone would.

python scripts/demo.py artifacts/streaming-8cb speech.wav out          writes out/decoded.wav, out/codes.safetensors
python scripts/demo.py artifacts/streaming-8cb generated out           the same with generated speech-like sound
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from mimi_export.cli.console import show_rows
from mimi_export.cli.errors import errors_as_exit_codes
from mimi_export.media.audio import AudioReader, AudioWriter
from mimi_export.media.codes import CodesMetadata, CodesWriter
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load

SECONDS = 16.0


def demo(variant: Path, recording: Path, output: Path) -> None:
    """Stream `recording` through the graphs of `variant`, one frame a call, into the directory `output`."""
    codec = load(variant)
    geometry = codec.geometry
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    encode_ms, decode_ms = [], []
    metadata = CodesMetadata(geometry.sampling_rate, geometry.frame_size, None, codec.artifact.manifest.source.model)
    with (
        AudioReader(recording, geometry.sampling_rate, geometry.frame_size) as reader,
        CodesWriter(output / "codes.safetensors", metadata, force=True) as codes_file,
        AudioWriter(output / "decoded.wav", geometry.sampling_rate, force=True) as audio_file,
    ):

        def play(codes: np.ndarray) -> None:
            for frame in range(codes.shape[2]):
                begin = time.perf_counter()
                samples = decoder.push(codes[:, :, frame : frame + 1])
                decode_ms.append(1000 * (time.perf_counter() - begin))
                audio_file.write(samples[0, : encoder.num_samples - audio_file.samples])
            codes_file.append(codes[0])

        for block in reader:
            begin = time.perf_counter()
            codes = encoder.push(block)
            encode_ms += [1000 * (time.perf_counter() - begin) / max(1, codes.shape[2])] * codes.shape[2]
            play(codes)
        play(encoder.flush().codes)
        codes_file.num_samples = encoder.num_samples
    spec = codec.encoder.spec
    frame_ms = 1000 / geometry.frame_rate
    caution = codec.artifact.manifest.source.caution
    rows = [
        *([("weights", caution)] if caution else []),
        ("variant", f"{codec.artifact.manifest.name}, made from {codec.artifact.manifest.source.model}"),
        ("recording", f"{recording}, {encoder.num_samples / geometry.sampling_rate:.2f} s"),
        ("codes", f"{decoder.num_frames} frames of {spec.shape.num_codebooks}: {output / 'codes.safetensors'}"),
        ("bitrate", f"{geometry.bitrate(spec.shape.num_codebooks) / 1000:g} kbit/s"),
        ("decoded", output / "decoded.wav"),
        ("one frame", f"{frame_ms:.0f} ms of sound; encoded in {median(encode_ms):.1f} ms, decoded in "
                      f"{median(decode_ms):.1f} ms (medians, one thread)"),
        ("real time", f"{frame_ms / (median(encode_ms) + median(decode_ms)):.1f} times, both ways together"),
    ]  # fmt: skip
    show_rows("Frame by frame through ONNX Runtime", rows)


def main(
    variant: Annotated[Path, typer.Argument(help="Variant directory.")],
    recording: Annotated[Path, typer.Argument(help="Audio file, or `generated`.")],
    output: Annotated[Path, typer.Argument(help="Directory for the results.")],
) -> None:
    """Encode and decode a recording frame by frame through ONNX Runtime."""
    with errors_as_exit_codes():
        output.mkdir(parents=True, exist_ok=True)
        if str(recording) == "generated":
            recording = output / "speech.wav"
            with AudioWriter(recording, force=True) as writer:
                writer.write(speech_like(SECONDS))
        demo(variant, recording, output)


if __name__ == "__main__":
    typer.run(main)
