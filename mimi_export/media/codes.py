"""Files of codes: a stream of `[channels, K, T]` codes and what is needed to play it at its right length.

Two formats, told apart by their extension:

    .safetensors   tensor `codes`, int64 (narrower integers are read too); metadata in the header
    .npz           array `codes` and one array per piece of metadata; never a pickled object

Tensor name and shape are those that candle's Mimi example reads and writes: files of one channel go both ways. Metadata
is optional: a file without it decodes to whole frames. Equal content gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as serialize

from mimi_export.contract.files import atomic_file
from mimi_export.errors import CodesError
from mimi_export.media.archives import TENSOR, read_npz, read_safetensors, short
from mimi_export.media.opening import check_file
from mimi_export.media.writing import WholeFileWriter, check_extension

Codes = npt.NDArray[np.int64]

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


def write_codes(
    path: str | os.PathLike[str], codes: npt.NDArray[Any], metadata: CodesMetadata | None = None, force: bool = False
) -> None:
    """Write codes `[channels, K, T]` of any integer type, as int64.

    Raises:
        CodesError: wrong shape, type, a negative code or an unknown extension.
        OutputError: the file exists and `force` is not given, or cannot be written.
    """
    content = _content(Path(path), codes, metadata or CodesMetadata())
    with atomic_file(path, force) as temporary:
        temporary.write_bytes(content)


def read_codes(path: str | os.PathLike[str]) -> CodesFile:
    """Read a file of codes, which may come from anybody: what is unsound is refused before it takes memory.

    Raises:
        CodesError: missing or damaged file, unknown extension, no tensor `codes`, or one of wrong shape, type or
            sign; metadata that contradicts it. Whether the codes fit a model is for its decoder to say.
    """
    path = Path(path)
    check_extension(path, FORMATS)
    size = check_file(path, CodesError)
    npz = path.suffix.lower() == ".npz"
    values, raw = read_npz(path, size, _FIELDS) if npz else read_safetensors(path)
    codes, metadata = _checked(values, path), parse_metadata(raw, path)
    _check_length(metadata, codes, path)
    return CodesFile(codes, metadata)


class CodesWriter(WholeFileWriter):
    """Collect the codes of one stream while it is encoded and write them when the `with` block ends well.

        with CodesWriter("speech.safetensors", metadata) as writer:
            writer.append(codes)                       # [K, n] or [channels, K, n]
            writer.num_samples = 123456                # what was real, known at the end

    Codes are held as 4 bytes each until then: one hour of 8 codebooks at 12.5 frames/s is 1.4 MB (and 2.9 MB more
    for the moment of writing). Errors are those of `write_codes`; the target is checked before the first append.
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
        temporary.write_bytes(_content(self.path, np.moveaxis(frames, 0, -1), metadata))


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


def _check_range(metadata: CodesMetadata, path: Path | str) -> None:
    for name, value in metadata.to_dict().items():
        if isinstance(value, int) and not 1 <= value < 1 << 63:
            raise CodesError(f"{path}: {name} is {short(value)}, expected 1 or more")


def _check_length(metadata: CodesMetadata, codes: Codes, path: Path) -> None:
    if metadata.num_samples is not None and metadata.frame_size is not None:
        most = codes.shape[2] * metadata.frame_size
        if metadata.num_samples > most:
            raise CodesError(
                f"{path}: num_samples is {metadata.num_samples}, but {codes.shape[2]} frames hold {most} samples"
            )


def _content(path: Path, codes: npt.NDArray[Any], metadata: CodesMetadata) -> bytes:
    """The bytes of the file, in the format that the extension names."""
    check_extension(path, FORMATS)
    values = _checked(codes, path)
    _check_range(metadata, path)
    _check_length(metadata, values, path)
    fields = metadata.to_dict()
    if path.suffix.lower() == ".safetensors":
        return _sorted_header(serialize({TENSOR: values}, {name: str(value) for name, value in fields.items()}))
    arrays: dict[str, Any] = {name: np.array(value) for name, value in fields.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{TENSOR: values, **arrays})
    return buffer.getvalue()


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
    _check_range(metadata, path)
    return metadata
