"""Audio and codes on standard output and codes on standard input, frame by frame as they are ready.

Codes travel as JSON lines (`jsonl`) or as bare little-endian 16-bit numbers (`u16`), one frame after the other, its
channels and then their codebooks in order. JSON lines begin with an object of metadata; each frame is a list
of K codes (with several channels a list of such lists); `{"num_samples": n}` comes before the last, filled up frame.
"""

from __future__ import annotations

import json
import queue
import struct
import sys
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mimi_export.errors import AudioError, CodesError
from mimi_export.media.audio import to_int16
from mimi_export.media.codes import Codes, CodesMetadata, parse_metadata

CODE_FORMS = ("jsonl", "u16")
AUDIO_FORMS = ("wav", "s16le", "f32le")
LONGEST_LINE = 1 << 20
_WAITING = 256  # pieces of output that a slow reader may leave lying before its writer waits, too
_ENDLESS = 0xFFFFFFFF  # size in the header of a WAV whose end is not known


class Outlet:
    """Standard output, written by a thread, so that a slow reader does not hold up who computes.

    A reader that has gone raises `BrokenPipeError` with the next piece.
    """

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Outlet:
        sys.stdout.flush()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.put(None)
            self._thread.join()
            if self._error is not None:
                raise self._error

    def put(self, piece: bytes | None) -> None:
        """Write a piece, or end."""
        if self._error is not None:
            raise self._error
        self._pieces.put(piece)

    def put_line(self, value: object) -> None:
        """Write a line of JSON."""
        self.put(json.dumps(value, separators=(",", ":")).encode() + b"\n")

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                if self._error is None:
                    sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
            except OSError as error:  # goes on emptying the queue, so that nobody waits for it
                self._error = error


class AudioPipe(Outlet):
    """Write audio to standard output; used as an `AudioWriter`.

    `form` is `wav` (16 bits, of unknown length), `s16le` or `f32le` without a header.
    """

    def __init__(self, sampling_rate: int, channels: int = 1, form: str = "wav") -> None:
        super().__init__()
        if form not in AUDIO_FORMS:
            raise AudioError(f"audio as {form}, expected {', '.join(AUDIO_FORMS)}")
        self.samples = self.clipped = 0
        self._form = form
        if form == "wav":
            width = 2 * channels
            sizes = struct.pack("<IHHIIHH", 16, 1, channels, sampling_rate, sampling_rate * width, width, 16)
            end = struct.pack("<I", _ENDLESS)
            self.put(b"RIFF" + end + b"WAVEfmt " + sizes + b"data" + end)

    def write(self, block: npt.NDArray[np.float32]) -> None:
        """Append `[channels, n]` float32 samples."""
        self.samples += block.shape[-1]
        if self._form == "f32le":
            self.put(block.T.astype("<f4").tobytes())
        else:
            self.clipped += int(np.count_nonzero(np.abs(block) > 1))
            self.put(to_int16(block.T).astype("<i2").tobytes())


class CodesPipe(Outlet):
    """Write codes to standard output; used as a `CodesWriter`."""

    def __init__(self, metadata: CodesMetadata, form: str = "jsonl") -> None:
        super().__init__()
        if form not in CODE_FORMS:
            raise CodesError(f"codes as {form}, expected {' or '.join(CODE_FORMS)}")
        self.num_frames = 0
        self._form = form
        self._num_samples: int | None = None
        if form == "jsonl":
            self.put_line(metadata.to_dict())

    @property
    def num_samples(self) -> int | None:
        """How many samples of a channel were real, once that is known."""
        return self._num_samples

    @num_samples.setter
    def num_samples(self, value: int) -> None:
        if self._form == "jsonl" and self._num_samples is None:
            self.put_line({"num_samples": value})
        self._num_samples = value

    def append(self, codes: Codes) -> None:
        """Append codes `[channels, K, n]`."""
        self.num_frames += codes.shape[-1]
        if self._form == "u16":
            self.put(np.moveaxis(codes, -1, 0).astype("<u2").tobytes())
            return
        for frame in np.moveaxis(codes, -1, 0):
            self.put_line(frame[0].tolist() if len(frame) == 1 else frame.tolist())


class CodesInlet:
    """Codes from standard input: `metadata` and the first frame are there at once, the rest is iterated.

    `num_codebooks` is what a frame of `u16` holds; `shape` are channels and codebooks of each frame.

    Raises:
        CodesError: no codes, or what is no code, here or while iterating.
    """

    def __init__(self, form: str, num_codebooks: int) -> None:
        if sys.stdin.isatty():
            raise CodesError("standard input is a terminal; pipe codes into it, or name a file")
        self.metadata = CodesMetadata()
        frames = _numbers(num_codebooks) if form == "u16" else self._lines()
        first = next(frames, None)
        if first is None:
            raise CodesError("standard input holds no codes")
        self.shape: tuple[int, int] = first.shape
        self._frames = chain([first], frames)

    def __iter__(self) -> Iterator[Codes]:
        """Frames `[channels, K, 1]` as they come; `metadata.num_samples` is known before the last one."""
        for number, frame in enumerate(self._frames):
            if frame.shape != self.shape:
                raise CodesError(f"frame {number} has shape {list(frame.shape)}, the first one had {list(self.shape)}")
            yield frame[:, :, None]

    def _lines(self) -> Iterator[Codes]:
        metadata: dict[str, Any] = {}
        for number, line in enumerate(iter(lambda: sys.stdin.buffer.readline(LONGEST_LINE), b""), 1):
            where = f"line {number} of standard input"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CodesError(f"{where} is no JSON; binary codes are read with --codes u16") from error
            if isinstance(value, dict):
                metadata |= value
                self.metadata = parse_metadata(metadata, where)
            else:
                yield _frame(value, where)


def _numbers(num_codebooks: int) -> Iterator[Codes]:
    size = 2 * num_codebooks
    while frame := sys.stdin.buffer.read(size):
        if len(frame) < size:
            raise CodesError(f"standard input ends {len(frame)} bytes into a frame of {size}; see --num-codebooks")
        yield np.frombuffer(frame, "<u2").astype(np.int64)[None]


def _frame(value: object, where: str) -> Codes:
    """One frame `[channels, K]` of a parsed line."""
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    lists = [row for row in rows if isinstance(row, list) and row and all(map(_is_code, row))]
    if len(lists) < len(rows) or len(set(map(len, lists))) != 1:
        raise CodesError(f"{where} is no frame of codes, expected whole numbers such as [12, 1904, 7]")
    return np.array(lists, np.int64)


def _is_code(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32
