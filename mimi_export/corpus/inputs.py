"""What a corpus is made of: folders, patterns, lists, archives and tables become utterances, in a fixed order.

    recordings/                 every audio file below it
    'recordings/**/*.flac'      a pattern, for files of any of these kinds
    list.jsonl, list.parquet    `path` (or `audio_filepath`), and if wanted `id`, `offset`, `duration`, `channel`
    shard-0001.tar              WebDataset: every audio member
    audio.parquet, a folder     Hugging Face `datasets`: a table with the sound inside (`Audio` with bytes), as Parquet
                                or as `save_to_disk` wrote it

Names come from places, so that the same corpus gives the same ids: `recordings/a/b.flac`, `shard-0001.tar/key.flac`.
"""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from mimi_export.contract.records import Reader
from mimi_export.errors import ConfigError
from mimi_export.media.opening import check_file
from mimi_export.media.sources import ENDINGS

ARROW = "data-*.arrow"  # the files that `save_to_disk` writes
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Utterance:
    """One piece of sound to encode: where it lies, and what of it is wanted.

    Attributes:
        id: its name in the corpus, there once.
        path: the audio file, or the archive or table that holds it.
        member: the name or number inside `path`, where that is an archive or a table.
        start: byte of an archive at which its sound begins, or row of a table.
        size: bytes of sound, for an estimate of what is left; 0 where not known.
        offset: seconds that are left out at the beginning.
        duration: seconds from there; `None` takes all the rest.
        channel: one of several, counted from 0; `None` takes their mean.
    """

    id: str
    path: str
    member: str | None = None
    start: int = 0
    size: int = 0
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Utterance:
        """What a row of a table says, whatever other columns it has."""
        return cls(**{entry.name: row[entry.name] for entry in fields(cls)})

    @property
    def place(self) -> str:
        """What messages and the table call it."""
        return self.path if self.member is None else f"{self.path}/{self.member}"


@dataclass(frozen=True)
class _Entry:
    """A line of a list."""

    path: str | None = None
    audio_filepath: str | None = None
    id: str | None = None
    offset: float | None = None
    duration: float | None = None
    channel: int | None = None


def find(inputs: list[str]) -> Iterator[Utterance]:
    """The utterances of all inputs.

    Raises:
        ConfigError: an input is not there, holds no sound or is none of the known kinds, or a list is damaged.
    """
    for text in inputs:
        empty = True
        for utterance in _of_input(text):
            empty = False
            yield utterance
        if empty:
            raise ConfigError(f"{text} holds no audio; a folder is searched for {', '.join(sorted(ENDINGS))}")


def _of_input(text: str) -> Iterator[Utterance]:
    path = Path(text)
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        tables = sorted(path.rglob(ARROW)) if saved else []
        if not tables:
            yield from _below(path)
        for table in tables:
            yield from _table(table, f"{path.name}/{table.relative_to(path).as_posix()}")
    elif path.exists() or not glob.has_magic(text):
        yield from _file(path)
    else:
        for name in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207 - the pattern may begin at the root
            if not Path(name).is_dir():
                yield from _file(Path(name), name)


def _below(folder: Path) -> Iterator[Utterance]:
    top = folder.resolve().name
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in ENDINGS and not name.startswith("."):
                yield Utterance(f"{top}/{path.relative_to(folder).as_posix()}", str(path), size=_size(path))


def _file(path: Path, name: str | None = None) -> Iterator[Utterance]:
    check_file(path, ConfigError)
    suffix = path.suffix.lower()
    if path.name.lower().endswith(COMPRESSED):
        raise ConfigError(f"{path} is compressed, so nothing in it can be read by itself; unpack it to .tar first")
    if suffix in ENDINGS:
        yield Utterance((name or path.name).lstrip("./"), str(path), size=_size(path))
    elif suffix == ".tar":
        yield from _archive(path)
    elif suffix == ".jsonl":
        yield from _lines(path)
    elif suffix in (".parquet", ".arrow"):
        yield from _table(path, path.name)
    else:
        known = ".tar, .jsonl, .parquet or an audio file"
        raise ConfigError(f"{path} is no input for a corpus; expected a folder, a pattern, {known}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is gone, or a link to nothing: reading it will say so
        return 0


def _archive(path: Path) -> Iterator[Utterance]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and Path(member.name).suffix.lower() in ENDINGS:
                    name = f"{path.name}/{member.name}"
                    yield Utterance(name, str(path), member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is no tar archive, or a damaged one: {error}") from error


def _lines(path: Path) -> Iterator[Utterance]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"{path} line {number}"
            try:
                content = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{name} is no JSON object: {error}") from error
            yield _entry(content, path, name)


def _entry(content: Any, path: Path, name: str) -> Utterance:
    entry = Reader(path, ConfigError, defaults=True, newer=True, name=name).record(_Entry, content)
    audio = entry.path or entry.audio_filepath
    if not audio:
        raise ConfigError(f"{name}: path is missing")
    if (entry.offset or 0) < 0 or (entry.duration is not None and not entry.duration > 0) or (entry.channel or 0) < 0:
        raise ConfigError(f"{name}: offset, duration and channel are no place in a recording")
    offset, cut = entry.offset or 0.0, entry.offset is not None or entry.duration is not None
    part = f"@{offset:g}" + (f"+{entry.duration:g}" if entry.duration is not None else "") if cut else ""
    identity = entry.id or audio + part + ("" if entry.channel is None else f"#{entry.channel}")
    return Utterance(identity, str(path.parent / audio), None, 0, 0, offset, entry.duration, entry.channel)


def _table(path: Path, name: str) -> Iterator[Utterance]:
    check_file(path, ConfigError)
    try:
        file, schema = open_table(path)
    except pa.ArrowException as error:
        raise ConfigError(f"{path} is no table of its kind, or a damaged one: {str(error).splitlines()[0]}") from error
    column = audio_column(schema)
    if column is None and not {"path", "audio_filepath"} & set(schema.names):
        raise ConfigError(f"{path} has neither a column `path` nor one with sound (bytes); it has {schema.names}")
    wanted = [entry.name for entry in fields(_Entry)] if column is None else ["id"]
    kept = [field for field in wanted if field in schema.names]
    batches = file.iter_batches(columns=kept) if isinstance(file, pq.ParquetFile) else file
    contents = (batch.select(kept).to_pylist() if kept else [{}] * batch.num_rows for batch in batches)
    for row, content in enumerate(chain.from_iterable(contents)):
        if column is None:
            given = {key: value for key, value in content.items() if value is not None}
            yield _entry(given, path, f"{path} row {row}")
        else:
            identity = content.get("id")
            yield Utterance(f"{name}/{row}" if identity is None else str(identity), str(path), str(row), row)


def audio_column(schema: pa.Schema) -> str | None:
    """The first column that holds files: a structure with `bytes`."""
    structures = (field for field in schema if pa.types.is_struct(field.type))
    return next((str(field.name) for field in structures if field.type.get_field_index("bytes") >= 0), None)


def open_table(path: Path) -> tuple[Any, pa.Schema]:
    """A Parquet file, or the reader of a file of Arrow's stream format, and its schema."""
    if path.suffix.lower() == ".parquet":
        file = pq.ParquetFile(path)
        return file, file.schema_arrow
    stream = pa.ipc.open_stream(pa.memory_map(str(path)))
    return stream, stream.schema
