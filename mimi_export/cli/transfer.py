"""Files through a codec, block by block: audio to codes, codes to audio, audio to audio.

Memory does not grow with the file, except for the codes themselves (`CodesWriter`: 4 bytes each). Nothing is
printed here. Errors are those of the readers and writers, and `CodesError` where more codebooks are asked for than
there are or codes do not fit the variant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimi_export.errors import CodesError
from mimi_export.media.audio import AudioReader, AudioWriter
from mimi_export.media.codes import CodesFile, CodesMetadata, CodesWriter
from mimi_export.runtime import Codec
from mimi_export.runtime.stream import check_codes

BLOCK_FRAMES = 32  # frames decoded between two ticks

Tick = Callable[[float, float | None], None]  # (done, of how many)


@dataclass(frozen=True)
class Job:
    """From which file to which, and how.

    `num_codebooks` takes only the first ones, `subtype` is the encoding of written audio, `keep_partial` writes what
    is done when the user interrupts. `tick` is told how many seconds of audio are done, and of how many where that is
    known.
    """

    source: Path
    target: Path
    num_codebooks: int | None = None
    subtype: str | None = None
    force: bool = False
    keep_partial: bool = False
    tick: Tick = lambda _done, _total: None


@dataclass(frozen=True)
class Transfer:
    """What was done: `samples` at the model's rate, `frames`, `num_codebooks`; `seconds` of work without loading.

    `clipped` counts samples beyond full scale in a written file, 0 where its encoding holds them. `partial` says that
    the user interrupted.
    """

    samples: int
    frames: int
    num_codebooks: int
    seconds: float
    clipped: int
    partial: bool


class _Clock:
    """The time that the work in a `with` block takes, and whether it was interrupted."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.interrupted = False

    @contextmanager
    def run(self, keep: Callable[[], bool]) -> Iterator[None]:
        """An interrupt ends the block well if `keep` says that something is worth keeping."""
        begin = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            if not keep():
                raise
        self.seconds = time.perf_counter() - begin


def chosen_codebooks(codec: Codec, num_codebooks: int | None) -> int:
    """How many codebooks of a variant to use: all of them, or the fewer that were asked for."""
    most = codec.artifact.manifest.shape.num_codebooks
    if num_codebooks is not None and num_codebooks > most:
        raise CodesError(f"asked for {num_codebooks} codebooks, {codec.artifact.path} has {most}; export one with more")
    return most if num_codebooks is None else num_codebooks


def encode(codec: Codec, job: Job) -> Transfer:
    """Encode an audio file to a file of codes."""
    count = chosen_codebooks(codec, job.num_codebooks)
    rate, frame_size = codec.geometry.sampling_rate, codec.geometry.frame_size
    metadata = CodesMetadata(rate, frame_size, model=codec.artifact.manifest.source.model)
    clock = _Clock()
    with AudioReader(job.source, rate) as reader, CodesWriter(job.target, metadata, job.force) as writer:
        stream = codec.encoder.stream()
        with clock.run(lambda: job.keep_partial and writer.num_frames > 0):
            for block in reader:
                writer.append(stream.push(block)[0, :count])
                job.tick(stream.num_samples / rate, reader.info.duration)
            writer.append(stream.flush().codes[0, :count])
        samples = writer.num_samples = min(stream.num_samples, writer.num_frames * frame_size)
        return Transfer(samples, writer.num_frames, count, clock.seconds, 0, clock.interrupted)


def decode(codec: Codec, file: CodesFile, job: Job) -> Transfer:
    """Decode codes, read from `job.source`, to an audio file, cut to the real samples where their number is known."""
    codes = _fitting(codec, file, job)
    rate, frames = codec.geometry.sampling_rate, codes.shape[2]
    whole = frames * codec.geometry.frame_size
    samples = min(file.metadata.num_samples or whole, whole)
    clock = _Clock()
    with AudioWriter(job.target, rate, job.force, job.subtype) as writer:
        stream = codec.decoder.stream()
        with clock.run(lambda: job.keep_partial and writer.samples > 0):
            for start in range(0, frames, BLOCK_FRAMES):
                _write(writer, stream.push(codes[:, :, start : start + BLOCK_FRAMES]), samples)
                job.tick(writer.samples / rate, samples / rate)
            _write(writer, stream.flush(), samples)
    done = stream.num_frames if clock.interrupted else frames
    return Transfer(writer.samples, done, codes.shape[1], clock.seconds, writer.clipped, clock.interrupted)


def roundtrip(codec: Codec, job: Job) -> Transfer:
    """Encode an audio file and decode it at once, frame by frame as in a call; the output has the input's length."""
    count = chosen_codebooks(codec, job.num_codebooks)
    rate, clock = codec.geometry.sampling_rate, _Clock()
    with (
        AudioReader(job.source, rate) as reader,
        AudioWriter(job.target, rate, job.force, job.subtype) as writer,
    ):
        encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
        with clock.run(lambda: job.keep_partial and writer.samples > 0):
            for block in reader:
                _write(writer, decoder.push(encoder.push(block)[:, :count]), encoder.num_samples)
                job.tick(encoder.num_samples / rate, reader.info.duration)
            _write(writer, decoder.push(encoder.flush().codes[:, :count]), encoder.num_samples)
            _write(writer, decoder.flush(), encoder.num_samples)
    return Transfer(writer.samples, decoder.num_frames, count, clock.seconds, writer.clipped, clock.interrupted)


def _fitting(codec: Codec, file: CodesFile, job: Job) -> npt.NDArray[np.int64]:
    """The codes to decode, after the file was compared with the variant."""
    geometry, most = codec.geometry, codec.artifact.manifest.shape.num_codebooks
    for name, wanted in (("sampling_rate", geometry.sampling_rate), ("frame_size", geometry.frame_size)):
        found = getattr(file.metadata, name)
        if found not in (None, wanted):
            raise CodesError(f"{job.source} was made with {name} {found}, {codec.artifact.path} has {wanted}")
    have = file.codes.shape[1]
    if job.num_codebooks is not None and job.num_codebooks > have:
        raise CodesError(f"asked for {job.num_codebooks} codebooks, {job.source} has {have}")
    use = have if job.num_codebooks is None else job.num_codebooks
    if use > most:
        raise CodesError(
            f"{job.source} has {have} codebooks, the decoder of {codec.artifact.path} takes 1 to {most}; decode the "
            f"first ones with --num-codebooks {most}, or use a variant with more"
        )
    return check_codes(file.codes[:, :use], 1, most, geometry.codebook_size)


def _write(writer: AudioWriter, audio: npt.NDArray[np.float32], samples: int) -> None:
    """Append decoded `[1, n]` audio, but no more than `samples` in all."""
    writer.write(audio[0, : samples - writer.samples])
