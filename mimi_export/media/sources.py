"""Where sound comes from: a file that libsndfile reads, one that ffmpeg converts, standard input.

Each is opened as something with `read_block(frames)`, which gives float32 `[n, channels]` and nothing at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from mimi_export.errors import AudioError
from mimi_export.media.opening import PIPE, check_file
from mimi_export.media.resampling import RATES

RAW = {"s16le": ("<i2", 32768), "f32le": ("<f4", 1)}  # name -> numpy's type, and what full scale is
CONTAINERS = frozenset(  # that libsndfile does not know and ffmpeg does
    {".3gp", ".aac", ".ac3", ".amr", ".avi", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".ts", ".webm", ".wma", ".wmv"}
)
_SEEKABLE = frozenset({"AIFF", "CAF", "FLAC", "W64", "WAV", "WAVEX"})  # to a sample; MP3 decodes to something else then
ENDINGS = frozenset(  # of files that are taken for sound in a folder
    CONTAINERS | {".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"}
)
_UNKNOWN_LENGTH = 1 << 62  # libsndfile reports 2^63 - 1 frames for a stream whose header leaves the length open
_PIPED_LENGTH = 0x7FFF0000  # a WAV written to a pipe declares the largest size there is
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class RawFormat:
    """What samples without a header are: `sampling_rate` in Hz, interleaved `channels`, `encoding` of `RAW`."""

    sampling_rate: int
    channels: int = 1
    encoding: str = "s16le"


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


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is only read forwards.

    For seekable files soundfile seeks to where it is already after every block. That changes what MP3 decodes to
    (the decoder restarts without its bit reservoir) and fails for FLAC of unknown length.
    """

    def __init__(self, file: str | int, piped: bool = False) -> None:
        super().__init__(file, closefd=not piped)
        known = not piped and self.frames < _UNKNOWN_LENGTH
        name = f"{self.format} {self.subtype}"
        self.info = AudioInfo(self.samplerate, self.channels, self.frames if known else None, name)

    def seekable(self) -> bool:
        return False

    def read_block(self, frames: int) -> npt.NDArray[np.float32]:
        block: npt.NDArray[np.float32] = self.read(frames, dtype="float32", always_2d=True)
        return block


class _Converted(_SoundFile):
    """What ffmpeg makes of a file, as it makes it."""

    def __init__(self, path: Path, program: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the rest
        command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
        command += ["-map", "0:a:0", "-f", "wav", "-c:a", "pcm_f32le", "-"]
        self._path, self._process = path, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors)
        try:
            super().__init__(self._process.stdout.fileno(), piped=True)  # type: ignore[union-attr]
        except soundfile.LibsndfileError:
            self._finish()
            raise AudioError(f"{path} holds no sound that ffmpeg can read") from None

    def read_block(self, frames: int) -> npt.NDArray[np.float32]:
        block = super().read_block(frames)
        if not len(block):
            self._finish()
        return block

    def close(self) -> None:
        super().close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _finish(self) -> None:
        if self._process.wait():
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
            self._errors.close()
            reason = "".join(character for character in lines[-1] if character.isprintable())
            raise AudioError(f"{self._path} cannot be converted by ffmpeg: {reason[:200]}")


class _Raw:
    """Samples without a header from standard input, as they come."""

    def __init__(self, descriptor: int, raw: RawFormat) -> None:
        if raw.encoding not in RAW or raw.channels < 1:
            raise AudioError(f"{raw.channels} channels of {raw.encoding}, expected 1 or more of {' or '.join(RAW)}")
        self._descriptor, self._rest = descriptor, b""
        self._type, self._scale = RAW[raw.encoding]
        self._width = raw.channels * np.dtype(self._type).itemsize
        self.info = AudioInfo(raw.sampling_rate, raw.channels, None, f"raw {raw.encoding}")

    def read_block(self, frames: int) -> npt.NDArray[np.float32]:
        data = self._rest
        while len(data) < self._width:
            more = os.read(self._descriptor, frames * self._width - len(data))
            if not more:
                if data:
                    raise AudioError(
                        f"standard input ends {len(data)} bytes into a sample of {self._width}; is it "
                        f"{self.info.format} with {self.info.channels} channel(s)? See --format and --channels"
                    )
                break
            data += more
        whole = len(data) // self._width * self._width
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._type).astype(np.float32)
        samples /= np.float32(self._scale)
        return samples.reshape(-1, self.info.channels)

    def close(self) -> None:
        """Standard input stays open."""


Source = _SoundFile | _Raw


def open_source(path: Path, raw: RawFormat | None = None) -> Source:
    """Open what `path` names, `-` standard input; with `raw` standard input has no header.

    Raises:
        AudioError: it is missing, unreadable, not audio, empty, shorter than its header says or of an absurd rate.
    """
    if path == PIPE:
        source = _standard_input(raw)
    elif raw is not None:
        raise AudioError(
            f"{path} has a header or is no audio file; raw samples are read from standard input: - < {path}"
        )
    else:
        source = _file(path)
    rate = source.info.sampling_rate
    if rate not in RATES:
        source.close()
        why = "is it damaged?" if raw is None else "see --rate"
        raise AudioError(f"{name_of(path)} claims {rate} Hz, expected {RATES[0]} to {RATES[-1]}; {why}")
    return source


def pass_over(source: Source, frames: int) -> None:
    """Go on `frames` later: at once where the format allows it, else by reading them."""
    if isinstance(source, _SoundFile) and source.info.frames is not None and source.format in _SEEKABLE:
        source.seek(min(frames, source.info.frames))
        return
    while frames > 0 and len(block := source.read_block(min(frames, 1 << 16))):
        frames -= len(block)


def _standard_input(raw: RawFormat | None) -> Source:
    descriptor = sys.stdin.fileno()
    if os.isatty(descriptor):
        raise AudioError("standard input is a terminal; pipe audio into it, or name a file")
    if raw is not None:
        return _Raw(descriptor, raw)
    try:
        return _SoundFile(descriptor, piped=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            "standard input has no header of an audio file; if it is raw samples, say --rate (and --channels, --format)"
        ) from error


def _file(path: Path) -> Source:
    check_file(path, AudioError)
    suffix = path.suffix.lower()
    if suffix in CONTAINERS:
        program = shutil.which("ffmpeg")
        if program is None:
            raise AudioError(f"{path} needs ffmpeg, which is not installed; install it, or convert the file to .wav")
        return _Converted(path, program)
    headless = f"{path} is not an audio file: it has no header; pipe it in with --rate, or convert it to .wav"
    if suffix == ".raw":  # soundfile wants to be told what is in these
        raise AudioError(headless)
    try:
        file = _SoundFile(str(path))
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path} is not an audio file that libsndfile reads: {reason_of(error)}; convert it to .wav or .flac"
        ) from error
    cut = _CUT_CHUNK.search(file.extra_info)
    if file.format == "RAW":  # libsndfile's guess from the extension when it finds no header
        file.close()
        raise AudioError(headless)
    if cut and int(cut[2]) < int(cut[1]) < _PIPED_LENGTH:
        file.close()
        raise cut_off(path, cut[1], "bytes of audio", cut[2])
    return file


def name_of(path: Path) -> str:
    """What messages call it."""
    return "standard input" if path == PIPE else str(path)


def cut_off(path: Path | str, declared: int | str, unit: str, found: int | str) -> AudioError:
    """The error of a file that ends early."""
    return AudioError(f"{path} is cut off: its header declares {declared} {unit}, the file has {found}; copy it again")


def reason_of(error: soundfile.LibsndfileError) -> str:
    """The reason alone."""
    text: str = error.error_string
    return text.strip().rstrip(".")
