"""The table of codes: one row an utterance.

    id, path, offset, channel     as in the input; channel is null where all were mixed
    duration                      seconds of sound that the codes stand for
    samples, frames               of the model's rate; the last frame was filled up with zeros
    last_frame_samples            how many samples of the last frame are real
    codes                         list of K lists of T uint16: codes[k][t]
    latents                       list of T lists of float32, where they were asked for

The schema's metadata has, under the key `mimi_export`, the JSON of a `CorpusInfo`: what made the codes. Between a
worker and the driver a row has a few columns more, and `error` in place of codes where the sound could not be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from mimi_export.contract.directory import Artifact
from mimi_export.contract.files import atomic_file
from mimi_export.contract.records import OPTIONAL, Reader, check_range, plain
from mimi_export.corpus.inputs import Utterance
from mimi_export.errors import CodesError, ConfigError

FORMAT_VERSION = 1
METADATA = b"mimi_export"
WORK_COLUMNS = ("index", "error", "reading", "resampling", "encoding")
CODES = pa.list_(pa.list_(pa.uint16()))


@dataclass(frozen=True)
class CorpusInfo:
    """What made the codes: a variant, the SHA-256 of its files, and the sizes that a reader needs.

    `hidden_size` is the width of latents, 0 where there are none.
    """

    variant: str
    precision: str
    model: str
    files: Mapping[str, str]
    num_codebooks: int
    sampling_rate: int
    frame_size: int
    hidden_size: int = field(default=0, metadata=OPTIONAL)

    @classmethod
    def of(cls, artifact: Artifact, num_codebooks: int | None, latents: bool) -> CorpusInfo:
        """What a variant makes; `ConfigError` where it has no latents or not so many codebooks."""
        manifest, geometry = artifact.manifest, artifact.geometry
        shape = manifest.shape
        if latents and shape.head == "codes":
            raise ConfigError(f"{artifact.path} gives no latents; export one with --head both")
        if not shape.num_codebooks and not latents:
            raise ConfigError(f"{artifact.path} gives latents alone; ask for them with --latents")
        check_range("the size of a codebook", geometry.codebook_size, 1, 1 << 16)
        if num_codebooks is not None:
            check_range("--num-codebooks", num_codebooks, 1, shape.num_codebooks)
        files = {name: entry.sha256 for name, entry in sorted(manifest.files.items())}
        count = shape.num_codebooks if num_codebooks is None else num_codebooks
        sizes = geometry.sampling_rate, geometry.frame_size, geometry.hidden_size if latents else 0
        return cls(manifest.name, manifest.precision, manifest.source.model, files, count, *sizes)

    @classmethod
    def read(cls, schema: pa.Schema, path: Path) -> CorpusInfo:
        """What stands in the schema of a file of ours; `CodesError` for another file."""
        text = (schema.metadata or {}).get(METADATA)
        reader = Reader(path, CodesError, newer=True)
        if text is None:
            reader.refuse("", "was not made by `mimi-export tokenize`")
        content = reader.version(json.loads(text), FORMAT_VERSION, "corpus of mimi-export")
        return reader.record(cls, content)

    def metadata(self) -> dict[bytes, bytes]:
        """The metadata of a schema."""
        return {METADATA: json.dumps({"format_version": FORMAT_VERSION, **plain(self)}).encode()}

    @property
    def schema(self) -> pa.Schema:
        """Columns and metadata of a shard."""
        columns = [
            ("id", pa.string()), ("path", pa.string()), ("offset", pa.float64()), ("duration", pa.float64()),
            ("channel", pa.int32()), ("samples", pa.int64()), ("frames", pa.int64()),
            ("last_frame_samples", pa.int32()),
        ]  # fmt: skip
        if self.num_codebooks:
            columns.append(("codes", CODES))
        if self.hidden_size:
            columns.append(("latents", pa.list_(pa.list_(pa.float32(), self.hidden_size))))
        return pa.schema(columns, self.metadata())

    @property
    def work_schema(self) -> pa.Schema:
        """Columns of a row on its way."""
        more = [pa.int64(), pa.string(), pa.float64(), pa.float64(), pa.float64()]
        return pa.schema([*self.schema, *(pa.field(*one) for one in zip(WORK_COLUMNS, more, strict=True))])


def work_row(
    info: CorpusInfo,
    index: int,
    utterance: Utterance,
    samples: int = 0,
    codes: npt.NDArray[Any] | None = None,
    latents: npt.NDArray[Any] | None = None,
    error: str | None = None,
    seconds: Sequence[float] = (0.0, 0.0, 0.0),
) -> pa.RecordBatch:
    """One row on its way: codes `[K, T]` and latents `[T, hidden]`, or an error; `seconds` of reading, resampling and
    encoding since the worker's last row.
    """
    frames = -(-samples // info.frame_size)
    values: dict[str, Any] = {
        "id": utterance.id, "path": utterance.place, "offset": utterance.offset, "channel": utterance.channel,
        "duration": samples / info.sampling_rate, "samples": samples, "frames": frames,
        "last_frame_samples": samples - max(0, frames - 1) * info.frame_size, "index": index, "error": error,
        **dict(zip(WORK_COLUMNS[2:], seconds, strict=True)),
    }  # fmt: skip
    columns = []
    for column in info.work_schema:
        if column.name == "codes" and codes is not None:
            columns.append(_nested(codes[: info.num_codebooks].astype(np.uint16), CODES))
        elif column.name == "latents" and latents is not None:
            columns.append(_nested(latents.astype(np.float32, copy=False), column.type))
        else:
            columns.append(pa.array([values.get(column.name)], column.type))
    return pa.RecordBatch.from_arrays(columns, schema=info.work_schema)


def _nested(array: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """A column of one row that is a matrix."""
    values = pa.array(np.ascontiguousarray(array).ravel())
    if pa.types.is_fixed_size_list(kind.value_type):
        inner = pa.FixedSizeListArray.from_arrays(values, array.shape[1])
    else:
        inner = pa.ListArray.from_arrays(np.arange(len(array) + 1) * array.shape[1], values)
    return pa.ListArray.from_arrays([0, len(array)], inner).cast(kind)


def matrix(cell: Any) -> npt.NDArray[Any]:
    """A cell of `codes` or `latents` as an array `[K, T]` or `[T, hidden]` over the table's own memory, read-only."""
    rows = cell.values
    array: npt.NDArray[Any] = rows.flatten().to_numpy(zero_copy_only=True).reshape(len(rows), -1)
    return array


def save_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file whole or not at all, also where the machine stops; `OutputError` where it cannot be."""
    with atomic_file(path, force=True) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def to_bytes(row: pa.RecordBatch) -> bytes:
    """A row as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_bytes(data: bytes) -> pa.RecordBatch:
    """The inverse of `to_bytes`."""
    return pa.ipc.open_stream(data).read_next_batch()
