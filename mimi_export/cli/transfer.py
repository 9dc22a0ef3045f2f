"""Sound and codes through a codec, block by block: audio to codes, codes to audio, audio to audio.

Each end is a file or a pipe. Memory does not grow with the input, except for the codes of a file (`CodesWriter`: 4
bytes each). Nothing is printed here. Errors are those of the readers and writers, and `CodesError` where more
codebooks are asked for than there are or codes do not fit the variant.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimi_export.errors import CodesError
from mimi_export.media.audio import AudioReader, AudioWriter
from mimi_export.media.codes import Codes, CodesFile, CodesMetadata, CodesWriter, read_codes
from mimi_export.media.latents import LatentsPipe, LatentsWriter
from mimi_export.media.opening import PIPE
from mimi_export.media.pipes import AudioPipe, CodesInlet, CodesPipe, Outlet
from mimi_export.media.resampling import Resampler
from mimi_export.media.sources import RawFormat
from mimi_export.runtime import Codec
from mimi_export.runtime.checks import check_codes
from mimi_export.runtime.features import FeatureExtractor

BLOCK_FRAMES = 32  # frames decoded between two ticks
SAFETENSORS = "safetensors"

Tick = Callable[[float, float | None], None]  # (done, of how many)


@dataclass(frozen=True)
class Job:
    """From where to where, and how; `-` is standard input or output.

    `num_codebooks` takes only the first ones, `separate` keeps channels apart, `raw` says what standard input is.
    `subtype` is the encoding of a written audio file, `rate` its sampling rate (`None` is the model's), `form` what
    audio or codes on standard input or output look like. `keep_partial` writes what is done when the user
    interrupts, as a pipe always has. `frame_rate` is that of latents (`None` is the model's). `tick` is told how many
    seconds of audio are done, and of how many where that is known.
    """

    source: Path
    target: Path
    num_codebooks: int | None = None
    separate: bool = False
    raw: RawFormat | None = None
    subtype: str | None = None
    rate: int | None = None
    form: str | None = None
    force: bool = False
    keep_partial: bool = False
    frame_rate: float | None = None
    tick: Tick = lambda _done, _total: None

    @property
    def keeps(self) -> bool:
        """Whether what was done until an interrupt stays."""
        return self.keep_partial or self.target == PIPE


@dataclass(frozen=True)
class Transfer:
    """What was done: `samples` of a channel at the model's rate, `frames`, `num_codebooks`; `seconds` without loading.

    `clipped` counts samples beyond full scale in written audio, 0 where its encoding holds them. `partial` says that
    the user interrupted.
    """

    samples: int
    frames: int
    num_codebooks: int
    seconds: float
    clipped: int
    partial: bool


class _Clock:
    """The time of a `with` block, which an interrupt ends well if `keep` says that something is worth keeping."""

    def __init__(self, keep: Callable[[], bool]) -> None:
        self._keep = keep

    def __enter__(self) -> _Clock:
        self._begin = time.perf_counter()
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> bool:
        self.seconds = time.perf_counter() - self._begin
        self.interrupted = isinstance(error, KeyboardInterrupt) and self._keep()
        return self.interrupted


class _AudioOut:
    """Decoded sound on its way out: cut to the real samples, resampled, written."""

    def __init__(self, writer: AudioWriter | AudioPipe, source_rate: int, target_rate: int, channels: int) -> None:
        self.samples = 0  # at the model's rate
        self.writer = writer
        self.resampler = Resampler(source_rate, target_rate, channels)

    def write(self, audio: npt.NDArray[np.float32], limit: int | None) -> None:
        """Append `[channels, n]`, but no more than `limit` in all."""
        audio = audio[:, : None if limit is None else max(0, limit - self.samples)]
        self.samples += audio.shape[1]
        self.writer.write(self.resampler.push(audio))


def open_codes(source: Path, form: str = "jsonl", num_codebooks: int = 1) -> CodesFile | CodesInlet:
    """Codes of a file or of standard input, where a frame of bare numbers holds `num_codebooks`."""
    if source != PIPE:
        return read_codes(source)
    if form != SAFETENSORS:
        return CodesInlet(form, num_codebooks)
    with tempfile.NamedTemporaryFile(suffix=f".{SAFETENSORS}") as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
        file.flush()
        return read_codes(file.name)


def chosen_codebooks(codec: Codec, num_codebooks: int | None) -> int:
    """How many codebooks of a variant to use: all of them, or the fewer that were asked for."""
    most = codec.artifact.manifest.shape.num_codebooks
    if num_codebooks is not None and num_codebooks > most:
        raise CodesError(f"asked for {num_codebooks} codebooks, {codec.artifact.path} has {most}; export one with more")
    return most if num_codebooks is None else num_codebooks


def encode(codec: Codec, job: Job) -> Transfer:
    """Encode audio to codes."""
    count = chosen_codebooks(codec, job.num_codebooks)
    rate, frame_size = codec.geometry.sampling_rate, codec.geometry.frame_size
    with (
        AudioReader(job.source, rate, separate=job.separate, raw=job.raw) as reader,
        _codes_out(job, codes_metadata(codec)) as writer,
    ):
        stream = codec.encoder.stream(reader.rows or 1)
        with _Clock(lambda: job.keeps and writer.num_frames > 0) as clock:
            for block in reader:
                writer.append(stream.push(block)[:, :count])
                job.tick(stream.num_samples / rate, reader.info.duration)
            last = stream.flush().codes[:, :count]
            writer.num_samples = stream.num_samples
            writer.append(last)
        samples = writer.num_samples = min(stream.num_samples, writer.num_frames * frame_size)
    return Transfer(samples, writer.num_frames, count, clock.seconds, 0, clock.interrupted)


def features(codec: Codec, job: Job) -> Transfer:
    """Encode audio to latents, for a variant that gives them."""
    model = codec.geometry
    frame_size = model.sampling_rate / (job.frame_rate or model.frame_rate)
    whole = int(frame_size) if frame_size.is_integer() else None
    metadata = dataclasses.replace(codes_metadata(codec), frame_size=whole)
    writer: LatentsWriter | LatentsPipe
    if job.target == PIPE:
        writer = LatentsPipe(job.form or "jsonl")
    else:
        writer = LatentsWriter(job.target, metadata, job.force)
    with AudioReader(job.source, model.sampling_rate, separate=job.separate, raw=job.raw) as reader, writer:
        extractor, samples = FeatureExtractor(codec, frame_rate=job.frame_rate, rows=reader.rows or 1), 0
        with _Clock(lambda: job.keeps and writer.num_frames > 0) as clock:
            for block in reader:
                writer.append(extractor.push(block))
                samples += block.shape[-1]
                job.tick(samples / model.sampling_rate, reader.info.duration)
            writer.append(extractor.flush())
        samples = min(samples, int(writer.num_frames * frame_size))
    return Transfer(samples, writer.num_frames, 0, clock.seconds, 0, clock.interrupted)


def decode(codec: Codec, codes: CodesFile | CodesInlet, job: Job) -> Transfer:
    """Decode `codes` to audio, cut to the real samples where their number is known."""
    blocks, channels, count, frames = _fitting(codec, codes, job)
    rate, frame_size = codec.geometry.sampling_rate, codec.geometry.frame_size
    with _audio_out(job, rate, channels) as out:
        stream = codec.decoder.stream(channels)
        with _Clock(lambda: job.keeps and out.samples > 0) as clock:
            for block in blocks:
                out.write(stream.push(block), codes.metadata.num_samples)
                job.tick(out.samples / rate, frames and frames * frame_size / rate)
            out.write(stream.flush(), codes.metadata.num_samples)
    return Transfer(out.samples, stream.num_frames, count, clock.seconds, out.writer.clipped, clock.interrupted)


def roundtrip(codec: Codec, job: Job) -> Transfer:
    """Encode audio and decode it at once, frame by frame as in a call; the output has the input's length."""
    count = chosen_codebooks(codec, job.num_codebooks)
    rate = codec.geometry.sampling_rate
    with (
        AudioReader(job.source, rate, separate=job.separate, raw=job.raw) as reader,
        _audio_out(job, rate, reader.rows or 1) as out,
    ):
        encoder, decoder = codec.encoder.stream(reader.rows or 1), codec.decoder.stream(reader.rows or 1)
        with _Clock(lambda: job.keeps and out.samples > 0) as clock:
            for block in reader:
                out.write(decoder.push(encoder.push(block)[:, :count]), encoder.num_samples)
                job.tick(encoder.num_samples / rate, reader.info.duration)
            out.write(decoder.push(encoder.flush().codes[:, :count]), encoder.num_samples)
            out.write(decoder.flush(), encoder.num_samples)
    return Transfer(out.samples, decoder.num_frames, count, clock.seconds, out.writer.clipped, clock.interrupted)


def codes_metadata(codec: Codec) -> CodesMetadata:
    """What files of this codec's codes say of themselves."""
    geometry = codec.geometry
    return CodesMetadata(geometry.sampling_rate, geometry.frame_size, model=codec.artifact.manifest.source.model)


@contextmanager
def _codes_out(job: Job, metadata: CodesMetadata) -> Iterator[CodesWriter | CodesPipe]:
    if job.target != PIPE:
        with CodesWriter(job.target, metadata, job.force) as writer:
            yield writer
    elif job.form != SAFETENSORS:
        pipe = CodesPipe(metadata, job.form or "jsonl")
        with pipe:
            yield pipe
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"codes.{SAFETENSORS}"
            with CodesWriter(path, metadata) as writer:
                yield writer
            with Outlet() as outlet:
                outlet.put(path.read_bytes())


@contextmanager
def _audio_out(job: Job, rate: int, channels: int) -> Iterator[_AudioOut]:
    target_rate = job.rate or rate
    writer: AudioWriter | AudioPipe
    if job.target == PIPE:
        writer = AudioPipe(target_rate, channels, job.form or "wav")
    else:
        writer = AudioWriter(job.target, target_rate, job.force, job.subtype, channels)
    with writer:
        out = _AudioOut(writer, rate, target_rate, channels)
        yield out
        writer.write(out.resampler.flush())


def _fitting(codec: Codec, codes: CodesFile | CodesInlet, job: Job) -> tuple[Iterator[Codes], int, int, int | None]:
    """Blocks of the codes to decode, channels, codebooks, and frames if known, after a comparison with the variant."""
    geometry, most = codec.geometry, codec.decoder.spec.shape.num_codebooks
    if codec.decoder.spec.shape.start != "codes":
        raise CodesError(f"the decoder of {codec.artifact.path} takes latents and no codes")
    for name, wanted in (("sampling_rate", geometry.sampling_rate), ("frame_size", geometry.frame_size)):
        found = getattr(codes.metadata, name)
        if found not in (None, wanted):
            raise CodesError(f"{job.source} was made with {name} {found}, {codec.artifact.path} has {wanted}")
    channels, have, frames = codes.codes.shape if isinstance(codes, CodesFile) else (*codes.shape, None)
    if job.num_codebooks is not None and job.num_codebooks > have:
        raise CodesError(f"asked for {job.num_codebooks} codebooks, {job.source} has {have}")
    use = have if job.num_codebooks is None else job.num_codebooks
    if use > most:
        raise CodesError(
            f"{job.source} has {have} codebooks, the decoder of {codec.artifact.path} takes 1 to {most}; decode the "
            f"first ones with --num-codebooks {most}, or use a variant with more"
        )
    if isinstance(codes, CodesInlet):
        return (block[:, :use] for block in codes), channels, use, None
    checked = check_codes(codes.codes[:, :use], channels, most, geometry.codebook_size)
    starts = range(0, codes.codes.shape[2], BLOCK_FRAMES)
    return (checked[:, :, start : start + BLOCK_FRAMES] for start in starts), channels, use, frames
