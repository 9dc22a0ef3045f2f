"""Files of codes: a stream of `[channels, K, T]` codes and what is needed to play it at its right length.

Two formats, told apart by their extension:

    .safetensors   tensor `codes`, int64 (narrower integers are read too); metadata in the header
    .npz           array `codes` and one array per piece of metadata; never a pickled object

Tensor name and shape are those that candle's Mimi example reads and writes: files of one channel go both ways. Metadata
is optional: a file without it decodes to whole frames. Equal content gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as serialize

from mimi_export.contract.files import atomic_file
from mimi_export.errors import CodesError
from mimi_export.media.archives import TENSOR, read_archive, short
from mimi_export.media.opening import check_file

Codes = npt.NDArray[np.int64]
Writer = TypeVar("Writer", bound="WholeFileWriter")

FORMATS = (".npz", ".safetensors")
LONGEST_NAME = 1000
MOST_CHANNELS = 64  # each takes the state of a stream when it is decoded
_DTYPES = ("int64", "int32", "uint32", "int16", "uint16", "int8", "uint8")


@dataclass(frozen=True)
class CodesMetadata:
    """What a file says about its codes beyond their values; all of it may be missing.

    `sampling_rate` in Hz, `frame_size` in audio samples per frame, `num_samples` the real samples before the last
    frame was filled up with zeros, `model` the name of the checkpoint that made the codes.
    """

    sampling_rate: int | None = None
    frame_size: int | None = None
    num_samples: int | None = None
    model: str | None = None

    def to_dict(self) -> dict[str, int | str]:
        """The fields that are known."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


_FIELDS = tuple(field.name for field in dataclasses.fields(CodesMetadata))


@dataclass(frozen=True)
class CodesFile:
    """Codes `[channels, K, T]` int64 and their metadata."""

    codes: Codes
    metadata: CodesMetadata


def read_codes(path: str | os.PathLike[str]) -> CodesFile:
    """Read a file of codes, which may come from anybody: what is unsound is refused before it takes memory.

    Raises:
        CodesError: missing or damaged file, unknown extension, no tensor `codes`, or one of wrong shape, type or
            sign; metadata that contradicts it. Whether the codes fit a model is for its decoder to say.
    """
    path = Path(path)
    _check_extension(path, FORMATS)
    size = check_file(path, CodesError)
    values, raw = read_archive(path, size, _FIELDS)
    codes, metadata = _checked(values, path), parse_metadata(raw, path)
    _check_metadata(metadata, path, codes.shape[2])
    return CodesFile(codes, metadata)


class WholeFileWriter(ABC):
    """Collect something and write it when the `with` block ends without an exception.

    Raises:
        CodesError: unknown extension.
        OutputError: the file exists and `force` is not given, or cannot be written; before anything is collected.
    """

    def __init__(self, path: Path, formats: Collection[str], force: bool) -> None:
        _check_extension(path, formats)
        self.path = self._temporary = path
        self._force = force
        self._stack = ExitStack()

    def __enter__(self: Writer) -> Writer:  # noqa: PYI019 - `typing.Self` is of Python 3.11
        self._temporary = self._stack.enter_context(atomic_file(self.path, self._force))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._write(self._temporary)

    @abstractmethod
    def _write(self, temporary: Path) -> None:
        """Write what was collected."""


class CodesWriter(WholeFileWriter):
    """Collect the codes of one stream while it is encoded and write them when the `with` block ends well.

        with CodesWriter("speech.safetensors", metadata) as writer:
            writer.append(codes)                       # [K, n] or [channels, K, n]
            writer.num_samples = 123456                # what was real, known at the end

    Codes are held as 4 bytes each until then: one hour of 8 codebooks at 12.5 frames/s is 1.4 MB (and 2.9 MB more
    for the moment of writing).

    Raises:
        CodesError: as for `WholeFileWriter`; codes of another shape or type, or negative ones; none at all.
    """

    def __init__(
        self, path: str | os.PathLike[str], metadata: CodesMetadata | None = None, force: bool = False
    ) -> None:
        super().__init__(Path(path), FORMATS, force)
        self.num_samples: int | None = None
        self._metadata = metadata or CodesMetadata()
        self._shape: tuple[int, int] | None = None  # channels and codebooks
        self._buffer = bytearray()  # frame after frame, uint32

    @property
    def num_frames(self) -> int:
        """Frames appended so far."""
        return len(self._buffer) // (4 * math.prod(self._shape)) if self._shape else 0

    def append(self, codes: npt.NDArray[Any]) -> None:
        """Append codes `[K, n]` or `[channels, K, n]` of any integer type; n may be 0, the rest stays the same."""
        rows = codes[None] if codes.ndim == 2 else codes
        if rows.ndim != 3 or codes.dtype.kind not in "iu":
            raise CodesError(f"codes are {codes.dtype} {list(codes.shape)}, expected integers of shape [codebooks, n]")
        shape = rows.shape[:2]
        if self._shape not in (None, shape) or 0 in shape:
            expected = list(self._shape) if self._shape else "1 or more of each"
            raise CodesError(f"codes have {list(shape)} channels and codebooks, expected {expected}")
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << 32:
            raise CodesError(f"codes reach from {codes.min()} to {codes.max()}, expected 0 or more")
        self._shape = shape
        self._buffer += np.moveaxis(rows, -1, 0).astype(np.uint32).tobytes()

    def _write(self, temporary: Path) -> None:
        if self._shape is None or not self._buffer:
            raise CodesError(f"{self.path}: there are no codes to write")
        metadata = self._metadata
        if self.num_samples is not None:
            metadata = dataclasses.replace(metadata, num_samples=self.num_samples)
        frames = np.frombuffer(self._buffer, np.uint32).reshape(-1, *self._shape)
        codes, fields = _checked(np.moveaxis(frames, 0, -1), self.path), metadata.to_dict()
        _check_metadata(metadata, self.path, len(frames))
        if self.path.suffix.lower() == ".safetensors":
            content = serialize({TENSOR: codes}, {name: str(value) for name, value in fields.items()})
            temporary.write_bytes(_sorted_header(content))
        else:
            arrays: dict[str, Any] = {name: np.array(value) for name, value in fields.items()}
            with temporary.open("wb") as file:  # numpy would add .npz to .NPZ
                np.savez(file, **{TENSOR: codes, **arrays})


def _check_extension(path: Path, formats: Collection[str]) -> None:
    """`CodesError` unless the path ends in one of `formats`."""
    if path.suffix.lower() not in formats:
        raise CodesError(f"{path} has the extension {path.suffix or '(none)'}, expected {' or '.join(formats)}")


def _checked(codes: npt.NDArray[Any], where: Path) -> Codes:
    if codes.dtype.name not in _DTYPES:
        raise CodesError(f"{where}: codes are {codes.dtype}, expected one of {', '.join(_DTYPES)}")
    if codes.ndim != 3 or codes.shape[0] > MOST_CHANNELS:
        raise CodesError(
            f"{where}: codes have shape {list(codes.shape)}, expected [channels, codebooks, frames] with 1 to "
            f"{MOST_CHANNELS} channels"
        )
    if not codes.size:
        raise CodesError(f"{where}: codes have shape {list(codes.shape)}, expected at least one codebook and frame")
    if int(codes.min()) < 0:
        row, codebook, frame = np.unravel_index(int(np.argmax(codes < 0)), codes.shape)
        raise CodesError(
            f"{where}: code {codes[row, codebook, frame]} at codebook {codebook}, frame {frame} is negative"
        )
    return np.ascontiguousarray(codes, dtype=np.int64)


def _check_metadata(metadata: CodesMetadata, path: Path | str, frames: float = math.inf) -> None:
    for name, value in metadata.to_dict().items():
        if isinstance(value, int) and not 1 <= value < 1 << 63:
            raise CodesError(f"{path}: {name} is {short(value)}, expected 1 or more")
    most = frames * (metadata.frame_size or math.inf)
    if (metadata.num_samples or 0) > most:
        raise CodesError(f"{path}: num_samples is {metadata.num_samples}, but {frames} frames hold {most} samples")


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in a fixed order: the library writes metadata in a random one."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors that follow
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def parse_metadata(raw: Mapping[str, Any], path: Path | str) -> CodesMetadata:
    """Known fields by name; unknown ones are someone else's and are left alone."""
    fields: dict[str, Any] = {}
    for name in _FIELDS:
        if name == "model" and name in raw:
            fields[name] = str(raw[name])
            if len(fields[name]) > LONGEST_NAME or not fields[name].isprintable():
                raise CodesError(f"{path}: model is {short(raw[name])}, expected up to {LONGEST_NAME} plain characters")
        elif name in raw:
            try:
                fields[name] = int(str(raw[name]))
            except ValueError as error:
                raise CodesError(f"{path}: {name} is {short(raw[name])}, expected a whole number") from error
    metadata = CodesMetadata(**fields)
    _check_metadata(metadata, path)
    return metadata
