"""Audio in and out as streams of float32 blocks, in memory that does not grow with the file.

Reading takes whatever `open_source` opens, at any rate and with any number of channels: channels are averaged, or kept
apart, then resampled by soxr. Writing picks the format from the extension. This module knows nothing of frames or of
the codec; samples are in [-1, 1] by convention and are never rescaled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import soundfile

from mimi_export.contract.files import atomic_file
from mimi_export.errors import AudioError, OutputError
from mimi_export.media.opening import PIPE
from mimi_export.media.resampling import Resampler, resampled_length
from mimi_export.media.signals import SAMPLING_RATE
from mimi_export.media.sources import RawFormat, cut_off, name_of, open_source, pass_over, reason_of

Samples = npt.NDArray[np.float32]
AnyPath = str | os.PathLike[str]

BLOCK_FRAMES = 1 << 15
MANY_CHANNELS = 8  # files with more are read in smaller blocks
SEGMENT_SLACK = 0.1  # seconds by which a segment may be too long for its file: its author has rounded
LIVE_SECONDS = 0.02  # of a block from standard input
FORMATS = {  # extension -> libsndfile's container and the encoding used unless the caller names one
    ".aiff": ("AIFF", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".w64": ("W64", "PCM_16"),
    ".wav": ("WAV", "PCM_16"),
}
_UNCLIPPED = {"FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III"}  # encodings that can hold more than +-1


class AudioReader:
    """Read sound as float32 blocks at `sampling_rate`.

        with AudioReader("speech.flac", 24000) as reader:
            for block in reader:                       # [n] float32, n varies, never 0
                ...

    The blocks add up to `resampled_length(frames, source rate, sampling_rate)` samples with the same values, however
    the input is cut. Iterate once.

    Args:
        path: any file that libsndfile or ffmpeg reads, or `-` for standard input.
        sampling_rate: of the blocks, in Hz.
        block_frames: source samples per channel that are read at once.
        separate: keep the channels apart, blocks are `[channels, n]`.
        raw: what standard input holds, if it has no header.
        offset: seconds at the source's beginning that are left out.
        duration: seconds that are read from there; all the rest unless given.

    Attributes:
        reading, resampling: seconds that both have taken so far.

    Raises:
        AudioError: the file is missing, unreadable, not audio, empty, shorter than its header says or than `offset`
            and `duration` want, or (while iterating) holds a sample that is NaN or infinite.
    """

    def __init__(
        self,
        path: AnyPath,
        sampling_rate: int = SAMPLING_RATE,
        block_frames: int = BLOCK_FRAMES,
        separate: bool = False,
        raw: RawFormat | None = None,
        offset: float = 0.0,
        duration: float | None = None,
    ) -> None:
        path = Path(path)
        self.name = name_of(path)
        self.sampling_rate = sampling_rate
        self.reading = self.resampling = 0.0
        self._started = False
        self._source = open_source(path, raw)
        self.info = self._source.info
        self.rows = self.info.channels if separate else None
        if path == PIPE:
            block_frames = max(1, round(LIVE_SECONDS * self.info.sampling_rate))
        self._block_frames = max(1, min(block_frames, MANY_CHANNELS * BLOCK_FRAMES // max(1, self.info.channels)))
        with ExitStack() as stack:
            stack.callback(self._source.close)
            frames, rate = self.info.frames, self.info.sampling_rate
            if frames is not None and not resampled_length(frames, rate, sampling_rate):
                raise AudioError(f"{self.name} holds no audio: {frames} sample(s) at {rate} Hz")
            self._begin = round(offset * rate)
            self._most = None if duration is None else round(duration * rate)
            if self._begin < 0 or (self._most is not None and not resampled_length(self._most, rate, sampling_rate)):
                raise AudioError(f"{self.name}: {duration} s from {offset} s on are no audio")
            stack.pop_all()  # in order: it stays open

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[Samples]:
        if self._started:
            raise AudioError(f"{self.name} was read already; open it again to read it a second time")
        self._started = True
        resampler = Resampler(self.info.sampling_rate, self.sampling_rate, self.rows)
        for block in self._blocks():
            began = time.perf_counter()
            resampled = resampler.push(block)
            self.resampling += time.perf_counter() - began
            if resampled.size:
                yield resampled
        rest = resampler.flush()
        if rest.size:
            yield rest

    def _blocks(self) -> Iterator[Samples]:
        """Blocks at the source's rate, averaged over channels or one row each, checked to be finite."""
        rate, begin, most = self.info.sampling_rate, self._begin, self._most
        done = 0
        while most is None or done < most:
            began = time.perf_counter()
            try:
                if begin and not done:
                    pass_over(self._source, begin)
                wanted = self._block_frames if most is None else min(self._block_frames, most - done)
                block = self._source.read_block(wanted)
            except soundfile.LibsndfileError as error:
                where = f"{self.name} cannot be decoded after {(begin + done) / rate:.3f} s"
                raise AudioError(f"{where}: {reason_of(error)}; the file is damaged or cut off") from error
            if not len(block):
                break
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            _check_finite(mono, self.name, begin + done, rate)
            done += len(mono)
            self.reading += time.perf_counter() - began
            yield np.ascontiguousarray(mono if self.rows is None else block.T)
        if most is None and self.info.frames is not None and begin + done < self.info.frames:
            raise cut_off(self.name, self.info.frames, "samples", begin + done)
        if most is not None and most - done > SEGMENT_SLACK * rate:
            raise AudioError(
                f"{self.name} ends at {(begin + done) / rate:.3f} s, wanted until {(begin + most) / rate:.3f}"
            )
        if not done:
            where = f" after {begin / rate:.3f} s" if begin else ""
            raise AudioError(f"{self.name} holds no audio{where}: 0 sample(s) at {rate} Hz")


def read_audio(path: AnyPath, sampling_rate: int = SAMPLING_RATE) -> Samples:
    """Read a whole file as mono float32 `[N]`; errors as for `AudioReader`."""
    with AudioReader(path, sampling_rate) as reader:
        return np.concatenate(list(reader))


class AudioWriter:
    """Write audio; the file appears at `path` only when the `with` block ends without an exception.

        with AudioWriter("out.wav", 24000) as writer:
            writer.write(block)                        # [n] or [channels, n] float32

    Integer encodings hold [-1, 1): what lies outside is clipped, and `clipped` counts those samples. A `.wav`
    holds 4 GiB (24 h of 16-bit audio at 24 kHz); `.w64` has no such limit. No sample at all makes an empty file.

    Args:
        path: its extension selects the format, one of `FORMATS`.
        sampling_rate: in Hz.
        force: replace an existing file.
        subtype: libsndfile's name of the encoding, such as `FLOAT` or `PCM_24`; `None` takes the format's usual one.
        channels: of the file.

    Raises:
        AudioError: unknown extension, an encoding or a rate that the format cannot hold, wrong shape or type of a
            block, or a sample that is NaN or infinite.
        OutputError: the file exists and `force` is not given, or cannot be written.
    """

    def __init__(
        self,
        path: AnyPath,
        sampling_rate: int = SAMPLING_RATE,
        force: bool = False,
        subtype: str | None = None,
        channels: int = 1,
    ) -> None:
        self.path = Path(path)
        self.sampling_rate = sampling_rate
        self.clipped = 0
        self.samples = 0
        self.channels = channels
        self._force = force
        self._format, self._subtype = _output_format(self.path, subtype)
        self._stack = ExitStack()
        self._file: soundfile.SoundFile | None = None

    def __enter__(self) -> AudioWriter:
        with ExitStack() as stack:  # undone here if opening fails, else by __exit__
            temporary = stack.enter_context(atomic_file(self.path, self._force))
            try:
                self._file = soundfile.SoundFile(
                    str(temporary), "w", self.sampling_rate, self.channels, self._subtype, format=self._format
                )
            except soundfile.LibsndfileError as error:
                what = f"{self._format} {self._subtype} at {self.sampling_rate} Hz"
                raise AudioError(f"{self.path} cannot hold {what}: {reason_of(error)}") from error
            stack.callback(self._close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def write(self, block: Samples) -> None:
        """Append `[n]` or `[channels, n]` float32 samples; n may be 0."""
        if self._file is None:
            raise AudioError(f"{self.path} is not open for writing; use AudioWriter in a `with` statement")
        rows = block[None] if block.ndim == 1 else block
        if rows.ndim != 2 or len(rows) != self.channels or block.dtype != np.float32:
            raise AudioError(
                f"audio to write is {block.dtype} {list(block.shape)}, expected float32 [{self.channels}, samples]"
            )
        for row in rows:
            _check_finite(row, self.path, self.samples, self.sampling_rate)
        if self._subtype not in _UNCLIPPED:
            self.clipped += int(np.count_nonzero(np.abs(rows) > 1))
        # libsndfile rounds to 16 bits downwards in some formats (half a step of offset), so that is done here
        encoded = to_int16(rows.T) if self._subtype == "PCM_16" else rows.T
        for start in range(0, len(encoded), BLOCK_FRAMES):  # libvorbis overflows its stack on very long blocks
            with _output_errors(self.path):
                self._file.write(encoded[start : start + BLOCK_FRAMES])
        self.samples += len(encoded)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with _output_errors(self.path):
                file.close()


def to_int16(samples: Samples) -> npt.NDArray[np.int16]:
    """Samples rounded to 16 bits; what lies outside [-1, 1) is clipped."""
    steps: Samples = np.rint(samples.clip(-1, 1) * 32768)
    return steps.clip(max=32767).astype(np.int16)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn libsndfile's errors while writing into `OutputError`."""
    try:
        yield
    except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all frames were written
        reason = reason_of(error) if isinstance(error, soundfile.LibsndfileError) else "not all samples were written"
        raise OutputError(f"cannot write {path}: {reason}; is the disk full?") from error


def _check_finite(samples: Samples, path: Path | str, offset: int, sampling_rate: int) -> None:
    finite = np.isfinite(samples)
    if not finite.all():
        first = offset + int(np.argmin(finite))
        raise AudioError(
            f"{path}: the sample at {first / sampling_rate:.3f} s (number {first}) is {samples[first - offset]}, "
            "expected a finite number; repair the audio first"
        )


def _output_format(path: Path, subtype: str | None) -> tuple[str, str]:
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise AudioError(f"{path} has the extension {path.suffix or '(none)'}, expected one of {known}")
    container, usual = FORMATS[path.suffix.lower()]
    chosen = usual if subtype is None else subtype.upper()
    if not soundfile.check_format(container, chosen):
        possible = ", ".join(sorted(soundfile.available_subtypes(container)))
        raise AudioError(f"{path}: {container} cannot hold the encoding {chosen}, expected one of {possible}")
    return container, chosen
