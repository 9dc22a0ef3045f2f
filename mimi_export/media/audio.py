"""Audio files in and out as streams of mono float32 blocks, in memory that does not grow with the file.

Reading takes whatever libsndfile reads, at any rate and with any number of channels: channels are averaged, then
the mono signal is resampled by soxr. Writing picks the format from the extension. This module knows nothing of
frames or of the codec; samples are in [-1, 1] by convention and are never rescaled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from mimi_export.contract.files import atomic_file
from mimi_export.errors import AudioError, OutputError
from mimi_export.media.opening import check_file
from mimi_export.media.signals import SAMPLING_RATE

Samples = npt.NDArray[np.float32]
AnyPath = str | os.PathLike[str]

BLOCK_FRAMES = 1 << 15
MANY_CHANNELS = 8  # files with more are read in smaller blocks
RATES = range(1000, 1_000_001)  # Hz; what claims another rate is no recording, and at 1 Hz a kilobyte is an hour
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
_UNKNOWN_LENGTH = 1 << 62  # libsndfile reports 2^63 - 1 frames for a stream whose header leaves the length open
_PIPED_LENGTH = 0x7FFF0000  # a WAV written to a pipe declares the largest size there is
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. `frames` (samples per channel) is `None` where the header leaves it open."""

    sampling_rate: int
    channels: int
    frames: int | None
    format: str

    @property
    def duration(self) -> float | None:
        """Length in seconds."""
        return None if self.frames is None else self.frames / self.sampling_rate


def resampled_length(frames: int, source_rate: int, sampling_rate: int) -> int:
    """Samples at `sampling_rate` for `frames` at `source_rate`: the exact ratio, halves rounded up (as soxr does)."""
    return (2 * frames * sampling_rate + source_rate) // (2 * source_rate)


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is only read forwards.

    For seekable files soundfile seeks to where it is already after every block. That changes what MP3 decodes to
    (the decoder restarts without its bit reservoir) and fails for FLAC of unknown length.
    """

    def seekable(self) -> bool:
        return False


class AudioReader:
    """Read one audio file as mono float32 blocks at `sampling_rate`.

        with AudioReader("speech.flac", 24000) as reader:
            for block in reader:                       # [n] float32, n varies, never 0
                ...

    The blocks add up to `resampled_length(frames, source rate, sampling_rate)` samples with the same values, however
    the input is cut: soxr rounds the length so by itself, hence nothing is trimmed or padded. Iterate once.

    Args:
        path: any file that libsndfile reads.
        sampling_rate: of the blocks, in Hz.
        block_frames: source samples per channel that are read at once.

    Raises:
        AudioError: the file is missing, unreadable, not audio, empty, shorter than its header says, or (while
            iterating) holds a sample that is NaN or infinite.
    """

    def __init__(self, path: AnyPath, sampling_rate: int = SAMPLING_RATE, block_frames: int = BLOCK_FRAMES) -> None:
        self.path = Path(path)
        self.sampling_rate = sampling_rate
        self._started = False
        self._file = file = _open(self.path)
        self._block_frames = max(1, min(block_frames, MANY_CHANNELS * BLOCK_FRAMES // max(1, file.channels)))
        frames = file.frames if file.frames < _UNKNOWN_LENGTH else None
        self.info = AudioInfo(file.samplerate, file.channels, frames, f"{file.format} {file.subtype}")
        with ExitStack() as stack:
            stack.callback(file.close)
            self._check_header()
            stack.pop_all()  # in order: it stays open

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Samples]:
        if self._started:
            raise AudioError(f"{self.path} was read already; open it again to read it a second time")
        self._started = True
        source_rate = self.info.sampling_rate
        if source_rate == self.sampling_rate:
            yield from self._mono_blocks()
            return
        resampler = soxr.ResampleStream(source_rate, self.sampling_rate, 1, dtype="float32")
        for block in self._mono_blocks():
            resampled: Samples = resampler.resample_chunk(block)
            if resampled.size:
                yield resampled
        tail: Samples = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        if tail.size:
            yield tail

    def _check_header(self) -> None:
        info = self.info
        if self._file.format == "RAW":  # libsndfile's guess from the extension when it finds no header
            raise AudioError(f"{self.path} is not an audio file: it has no header; convert it to .wav")
        if info.sampling_rate not in RATES:
            raise AudioError(
                f"{self.path} claims {info.sampling_rate} Hz, expected {RATES[0]} to {RATES[-1]}; is it damaged?"
            )
        cut = _CUT_CHUNK.search(self._file.extra_info)
        if cut and int(cut[2]) < int(cut[1]) < _PIPED_LENGTH:
            raise _cut_off(self.path, cut[1], "bytes of audio", cut[2])
        if info.frames is not None and not resampled_length(info.frames, info.sampling_rate, self.sampling_rate):
            raise AudioError(f"{self.path} holds no audio: {info.frames} sample(s) at {info.sampling_rate} Hz")

    def _mono_blocks(self) -> Iterator[Samples]:
        """Blocks at the source's rate, averaged over channels, each checked to be finite."""
        done = 0
        while True:
            try:
                block = self._file.read(self._block_frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                where = f"{self.path} cannot be decoded after {done / self.info.sampling_rate:.3f} s"
                raise AudioError(f"{where}: {_reason(error)}; the file is damaged or cut off") from error
            if not len(block):
                break
            mono: Samples = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            _check_finite(mono, self.path, done, self.info.sampling_rate)
            done += len(mono)
            yield np.ascontiguousarray(mono)
        if self.info.frames is not None and done < self.info.frames:
            raise _cut_off(self.path, self.info.frames, "samples", done)
        if not done:
            raise AudioError(f"{self.path} holds no audio: 0 sample(s) at {self.info.sampling_rate} Hz")


def read_audio(path: AnyPath, sampling_rate: int = SAMPLING_RATE) -> Samples:
    """Read a whole file as mono float32 `[N]`; errors as for `AudioReader`."""
    with AudioReader(path, sampling_rate) as reader:
        return np.concatenate(list(reader))


class AudioWriter:
    """Write mono audio; the file appears at `path` only when the `with` block ends without an exception.

        with AudioWriter("out.wav", 24000) as writer:
            writer.write(block)                        # [n] float32

    Integer encodings hold [-1, 1): what lies outside is clipped, and `clipped` counts those samples. A `.wav`
    holds 4 GiB (24 h of 16-bit audio at 24 kHz); `.w64` has no such limit. No sample at all makes an empty file.

    Args:
        path: its extension selects the format, one of `FORMATS`.
        sampling_rate: in Hz.
        force: replace an existing file.
        subtype: libsndfile's name of the encoding, such as `FLOAT` or `PCM_24`; `None` takes the format's usual one.

    Raises:
        AudioError: unknown extension, an encoding or a rate that the format cannot hold, wrong shape or type of a
            block, or a sample that is NaN or infinite.
        OutputError: the file exists and `force` is not given, or cannot be written.
    """

    def __init__(
        self, path: AnyPath, sampling_rate: int = SAMPLING_RATE, force: bool = False, subtype: str | None = None
    ) -> None:
        self.path = Path(path)
        self.sampling_rate = sampling_rate
        self.clipped = 0
        self.samples = 0
        self._force = force
        self._format, self._subtype = _output_format(self.path, subtype)
        self._stack = ExitStack()
        self._file: soundfile.SoundFile | None = None

    def __enter__(self) -> AudioWriter:
        with ExitStack() as stack:  # undone here if opening fails, else by __exit__
            temporary = stack.enter_context(atomic_file(self.path, self._force))
            try:
                self._file = soundfile.SoundFile(
                    str(temporary), "w", self.sampling_rate, 1, self._subtype, format=self._format
                )
            except soundfile.LibsndfileError as error:
                what = f"{self._format} {self._subtype} at {self.sampling_rate} Hz"
                raise AudioError(f"{self.path} cannot hold {what}: {_reason(error)}") from error
            stack.callback(self._close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def write(self, block: Samples) -> None:
        """Append `[n]` float32 samples; n may be 0."""
        if self._file is None:
            raise AudioError(f"{self.path} is not open for writing; use AudioWriter in a `with` statement")
        if block.ndim != 1 or block.dtype != np.float32:
            raise AudioError(f"audio to write is {block.dtype} {list(block.shape)}, expected float32 [samples]")
        _check_finite(block, self.path, self.samples, self.sampling_rate)
        if self._subtype not in _UNCLIPPED:
            self.clipped += int(np.count_nonzero(np.abs(block) > 1))
        encoded: npt.NDArray[Any] = block
        # libsndfile rounds to 16 bits downwards in some formats (half a step of offset), so that is done here
        if self._subtype == "PCM_16":
            encoded = np.rint(block.clip(-1, 1) * 32768).clip(max=32767).astype(np.int16)
        for start in range(0, len(block), BLOCK_FRAMES):  # libvorbis overflows its stack on very long blocks
            with _output_errors(self.path):
                self._file.write(encoded[start : start + BLOCK_FRAMES])
        self.samples += len(block)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with _output_errors(self.path):
                file.close()


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn libsndfile's errors while writing into `OutputError`."""
    try:
        yield
    except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all frames were written
        reason = _reason(error) if isinstance(error, soundfile.LibsndfileError) else "not all samples were written"
        raise OutputError(f"cannot write {path}: {reason}; is the disk full?") from error


def _open(path: Path) -> soundfile.SoundFile:
    check_file(path, AudioError)
    if path.suffix.lower() == ".raw":  # soundfile wants to be told what is in these
        raise AudioError(f"{path} is not an audio file: it has no header; convert it to .wav")
    try:
        return _SequentialFile(str(path))
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path} is not an audio file that libsndfile reads: {_reason(error)}; convert it to .wav or .flac"
        ) from error


def _cut_off(path: Path, declared: int | str, unit: str, found: int | str) -> AudioError:
    return AudioError(f"{path} is cut off: its header declares {declared} {unit}, the file has {found}; copy it again")


def _reason(error: soundfile.LibsndfileError) -> str:
    text: str = error.error_string
    return text.strip().rstrip(".")


def _check_finite(samples: Samples, path: Path, offset: int, sampling_rate: int) -> None:
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
