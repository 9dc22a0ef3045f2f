"""What a file of codes holds, read as from a stranger: nothing is unpacked before its size is known to be sound."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mimi_export.errors import CodesError

TENSOR = "codes"
LARGEST_SMALL = 1 << 26  # bytes that any .npz may unpack to: a day of 8 codebooks
LARGEST_RATIO = 8  # times its size for a larger one; codes of 11 bits in 64 pack to a sixth
LONGEST_HEADER = 1 << 20  # bytes of a .safetensors file's
SHORT = 200
Content = tuple[npt.NDArray[Any], Mapping[str, Any]]  # codes and metadata
# What damage raises; TypeError is of a type that numpy lacks, such as bfloat16.
_DAMAGE = (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, TypeError)


def read_archive(path: Path, size: int, fields: Collection[str]) -> Content:
    """The codes and, of `fields` at least, the metadata of a file of `size` bytes; `CodesError` for anything else."""
    npz = path.suffix.lower() == ".npz"
    try:
        return _read_npz(path, size, fields) if npz else _read_safetensors(path)
    except CodesError:
        raise
    except _DAMAGE as error:
        kind = "an .npz file of plain arrays" if npz else "a safetensors file of codes"
        raise CodesError(f"{path} is not {kind}, or a damaged one: {_line(error)}") from error
    except OSError as error:
        raise CodesError(f"{path} cannot be read: {_line(error)}") from error


def _read_safetensors(path: Path) -> Content:
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        header = raw.read(min(size, LONGEST_HEADER))
    if size > LONGEST_HEADER:
        raise ValueError(f"its header has {size} bytes, expected {LONGEST_HEADER} at most")
    with safe_open(path, framework="numpy") as file:
        _check_names(file.keys(), "tensor", path)
        names = json.loads(header, object_pairs_hook=_unique)  # the library lets the last of two equal names win
        return file.get_tensor(TENSOR), names.get("__metadata__") or {}


def _read_npz(path: Path, size: int, fields: Collection[str]) -> Content:
    if not zipfile.is_zipfile(path):
        np.load(path, mmap_mode="r")  # says what is wrong with anything but one array
        raise CodesError(f"{path} is one array, expected an .npz archive with an array `{TENSOR}`")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise CodesError(f"{path} holds two arrays of one name; write it again")
        _check_names([name.removesuffix(".npy") for name in members], "array", path)
        budget = max(LARGEST_SMALL, LARGEST_RATIO * size)
        wanted = [name for name in (TENSOR, *fields) if f"{name}.npy" in members]
        arrays = {name: _read_array(archive, members[f"{name}.npy"], budget, path) for name in wanted}
    return arrays.pop(TENSOR), {name: array.item() for name, array in arrays.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in its header twice")
    return found


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: int, path: Path) -> npt.NDArray[Any]:
    """One array, after its header was compared with the size that the archive declares and that with the budget."""
    if member.file_size > budget:
        raise CodesError(f"{path} would unpack to {member.file_size} bytes, expected {budget} at most; pack it less")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"an array of shape {short(shape)} does not fill its {member.file_size} bytes")
    with archive.open(member) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _check_names(names: Collection[str], word: str, path: Path) -> None:
    if TENSOR not in names:
        raise CodesError(f"{path} has no {word} `{TENSOR}`, only {short(sorted(names))}: it is no file of codes")


def _line(error: Exception) -> str:
    """The reason alone, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text[:SHORT] if text.isprintable() else short(text)


def short(value: object) -> str:
    """What a stranger wrote, fit for one line."""
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
