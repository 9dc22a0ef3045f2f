"""Files through a codec, block by block: audio to codes, codes to audio, audio to audio.

Memory does not grow with the file, except for the codes themselves (`CodesWriter`: 4 bytes each). Nothing is
printed here; `tick` is told how many seconds of audio are done, and of how many where that is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimi_export.errors import CodesError
from mimi_export.media.audio import AudioReader, AudioWriter
from mimi_export.media.codes import CodesFile, CodesMetadata, CodesWriter, read_codes
from mimi_export.runtime import Codec
from mimi_export.runtime.stream import check_codes

BLOCK_FRAMES = 32  # frames decoded between two ticks

Tick = Callable[[float, float | None], None]  # (done, of how many)


@dataclass(frozen=True)
class Transfer:
    """What was done: `samples` at the model's rate, `frames`, `num_codebooks`; `seconds` of work without loading.

    `clipped` counts samples beyond full scale in a written file, 0 where its encoding holds them.
    """

    samples: int
    frames: int
    num_codebooks: int
    seconds: float
    clipped: int = 0


def chosen_codebooks(codec: Codec, num_codebooks: int | None) -> int:
    """How many codebooks of a variant to use: all of them, or the fewer that were asked for.

    Raises:
        CodesError: more than the variant has.
    """
    most = codec.artifact.manifest.shape.num_codebooks
    if num_codebooks is not None and num_codebooks > most:
        raise CodesError(f"asked for {num_codebooks} codebooks, {codec.artifact.path} has {most}; export one with more")
    return most if num_codebooks is None else num_codebooks


def encode_file(
    codec: Codec, source: Path, target: Path, *, num_codebooks: int | None = None, force: bool = False, tick: Tick
) -> Transfer:
    """Encode an audio file to a file of codes.

    Raises:
        AudioError: the audio cannot be read.
        CodesError: more codebooks than the variant has, or an unknown extension of `target`.
        OutputError: `target` exists and `force` is not given, or cannot be written.
    """
    count = chosen_codebooks(codec, num_codebooks)
    rate, model = codec.geometry.sampling_rate, codec.artifact.manifest.source.model
    metadata = CodesMetadata(sampling_rate=rate, frame_size=codec.geometry.frame_size, model=model)
    with AudioReader(source, rate) as reader, CodesWriter(target, metadata, force) as writer:
        stream = codec.encoder.stream()
        begin = time.perf_counter()
        for block in reader:
            writer.append(stream.push(block)[0, :count])
            tick(stream.num_samples / rate, reader.info.duration)
        writer.append(stream.flush().codes[0, :count])
        writer.num_samples = stream.num_samples
        seconds = time.perf_counter() - begin
        return Transfer(stream.num_samples, writer.num_frames, count, seconds)


def decode_file(
    codec: Codec,
    source: Path,
    target: Path,
    *,
    num_codebooks: int | None = None,
    force: bool = False,
    subtype: str | None = None,
    tick: Tick,
) -> Transfer:
    """Decode a file of codes to an audio file, cut to the real samples where the file says how many there are.

    Raises:
        CodesError: the codes cannot be read or do not fit the variant.
        AudioError: the format that the extension of `target` names cannot hold the audio.
        OutputError: `target` exists and `force` is not given, or cannot be written.
    """
    file = read_codes(source)
    codes = _fitting(codec, file, source, num_codebooks)
    rate, frames = codec.geometry.sampling_rate, codes.shape[2]
    whole = frames * codec.geometry.frame_size
    samples = min(file.metadata.num_samples or whole, whole)
    with AudioWriter(target, rate, force, subtype) as writer:
        stream = codec.decoder.stream()
        begin = time.perf_counter()
        for start in range(0, frames, BLOCK_FRAMES):
            _write(writer, stream.push(codes[:, :, start : start + BLOCK_FRAMES]), samples)
            tick(writer.samples / rate, samples / rate)
        _write(writer, stream.flush(), samples)
        seconds = time.perf_counter() - begin
    return Transfer(samples, frames, codes.shape[1], seconds, writer.clipped)


def roundtrip_file(
    codec: Codec,
    source: Path,
    target: Path,
    *,
    num_codebooks: int | None = None,
    force: bool = False,
    subtype: str | None = None,
    tick: Tick,
) -> Transfer:
    """Encode an audio file and decode it at once, frame by frame as in a call; the output has the input's length.

    Errors are those of `encode_file` and `decode_file`.
    """
    count = chosen_codebooks(codec, num_codebooks)
    rate = codec.geometry.sampling_rate
    with AudioReader(source, rate) as reader, AudioWriter(target, rate, force, subtype) as writer:
        encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
        begin = time.perf_counter()
        for block in reader:
            _write(writer, decoder.push(encoder.push(block)[:, :count]), encoder.num_samples)
            tick(encoder.num_samples / rate, reader.info.duration)
        last = encoder.flush()
        _write(writer, decoder.push(last.codes[:, :count]), encoder.num_samples)
        _write(writer, decoder.flush(), encoder.num_samples)
        seconds = time.perf_counter() - begin
    return Transfer(encoder.num_samples, decoder.num_frames, count, seconds, writer.clipped)


def _fitting(codec: Codec, file: CodesFile, source: Path, num_codebooks: int | None) -> npt.NDArray[np.int64]:
    """The codes to decode, after the file was compared with the variant."""
    geometry, most = codec.geometry, codec.artifact.manifest.shape.num_codebooks
    for name, wanted in (("sampling_rate", geometry.sampling_rate), ("frame_size", geometry.frame_size)):
        found = getattr(file.metadata, name)
        if found not in (None, wanted):
            raise CodesError(f"{source} was made with {name} {found}, {codec.artifact.path} has {wanted}")
    have = file.codes.shape[1]
    if num_codebooks is not None and num_codebooks > have:
        raise CodesError(f"asked for {num_codebooks} codebooks, {source} has {have}")
    use = have if num_codebooks is None else num_codebooks
    if use > most:
        raise CodesError(
            f"{source} has {have} codebooks, the decoder of {codec.artifact.path} takes 1 to {most}; decode the first "
            f"ones with --num-codebooks {most}, or use a variant with more"
        )
    return check_codes(file.codes[:, :use], 1, most, geometry.codebook_size)


def _write(writer: AudioWriter, audio: npt.NDArray[np.float32], samples: int) -> None:
    """Append decoded `[1, n]` audio, but no more than `samples` in all."""
    writer.write(audio[0, : samples - writer.samples])
