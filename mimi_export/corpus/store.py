"""Where rows go: shards that appear whole, in the order of the plan, and a journal of those that are not whole yet.

    codes-00000.parquet   a finished shard: every utterance of its part of the plan that could be read
    errors.parquet        the others, with the reason
    .rows-00001           the journal of a shard on its way; it goes when the shard is there
    .ray/rows             what Ray has written, a file for each batch, until all of it is in shards
    .lock                 held while a run writes here

A row is in the journal before anybody counts it as done. A run that is killed leaves at most the end of one row there,
which its checksum tells. The same rows give the same bytes of a shard, whatever their order.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mimi_export.corpus.plan import Plan
from mimi_export.corpus.rows import CorpusInfo, from_bytes, save_table, to_bytes
from mimi_export.errors import OutputError

ERRORS, LOCK = "errors.parquet", ".lock"
MOST_UNSAVED = 1 << 28  # bytes of rows that wait for room on a full disk
_HEAD = struct.Struct("<QI")  # of a journal's record: its length and CRC-32
_ERROR_COLUMNS = ("index", "id", "path", "offset", "channel", "error")


def shard_path(directory: Path, shard: int) -> Path:
    """The file of a shard."""
    return directory / f"codes-{shard:05d}.parquet"


def shards(directory: Path) -> list[Path]:
    """The finished shards of an output, in order."""
    return sorted(directory.glob("codes-*.parquet"))


def read_errors(directory: Path) -> list[dict[str, Any]]:
    """What could not be read, in the order of the plan, with the reason."""
    path = directory / ERRORS
    kept: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist() if path.exists() else []
    return kept


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let no other run write to an output; `OutputError` where one does."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"another run writes to {directory}; wait for it, or choose another directory") from error
        yield


class Landing:
    """Follows what Ray writes; each whole file is read once."""

    def __init__(self, directory: Path, info: CorpusInfo) -> None:
        self.folder = directory.resolve() / ".ray"
        self.rows = self.folder / "rows"
        self._info = info
        self._seen: set[Path] = set()

    def new(self) -> Iterator[bytes]:
        """The rows of files that are whole and were not read yet."""
        for path in sorted({*self.rows.glob("*.parquet")} - self._seen):
            try:
                table = pq.read_table(path, partitioning=None)
            except (pa.ArrowException, OSError):  # it is being written, or whoever wrote it was killed
                continue
            self._seen.add(path)
            table = table.select(self._info.work_schema.names).cast(self._info.work_schema)
            yield from map(to_bytes, table.combine_chunks().to_batches(max_chunksize=1))

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Store:
    """The rows of a corpus on their way to its shards.

    Attributes:
        seconds: spent in writing.
        full: why rows could not be saved the last time, if they could not; they wait in memory and are tried again.

    Raises:
        OutputError: the output cannot be read.
    """

    def __init__(self, directory: Path, plan: Plan, info: CorpusInfo) -> None:
        self.directory, self.plan, self.info = directory, plan, info
        self.seconds = 0.0
        self.full: OutputError | None = None
        self._rows: dict[int, dict[int, bytes]] = {}  # shard -> index -> row
        self._unsaved: list[tuple[int, bytes]] = []  # that the journal lacks
        self._late: set[int] = set()  # shards that are complete and could not be written
        open_shards = [shard for shard in range(len(plan.first) - 1) if not shard_path(directory, shard).exists()]
        for path in directory.glob(".*.parquet"):  # what a run left that was killed while it wrote a table
            path.unlink()
        for path in directory.glob(".rows-*"):
            if int(path.name.rpartition("-")[2]) not in open_shards:
                path.unlink()
        for shard in open_shards:
            self._rows[shard] = {from_bytes(data)["index"][0].as_py(): data for data in self._replay(shard)}
            self._finish(shard)

    def missing(self) -> npt.NDArray[np.int64]:
        """Indices of the plan that have no row yet."""
        parts = [np.zeros(0, np.int64)]
        for shard, rows in self._rows.items():
            wanted = np.arange(self.plan.first[shard], self.plan.first[shard + 1])
            parts.append(np.setdiff1d(wanted, np.fromiter(rows, np.int64, len(rows))))
        return np.concatenate(parts)

    def add(self, data: bytes) -> pa.RecordBatch | None:
        """Keep a row; the row, or `None` where there is one of its index already.

        Raises:
            OutputError: more rows wait for room on a full disk than memory should hold.
        """
        row = from_bytes(data)
        index = row["index"][0].as_py()
        shard = int(np.searchsorted(self.plan.first, index, "right")) - 1
        rows = self._rows.get(shard)
        if rows is None or index in rows:
            return None
        rows[index] = data
        self._unsaved.append((shard, data))
        self._save()
        for late in sorted({*self._late, shard}):
            self._finish(late)
        if self.full is not None and sum(len(data) for _, data in self._unsaved) > MOST_UNSAVED:
            raise self.full
        return row

    def close(self) -> None:
        """Write what waits; `OutputError` where it still cannot be."""
        self._save()
        for shard in sorted(self._late):
            self._finish(shard)
        if self.full is not None and (self._unsaved or self._late):
            raise OutputError(f"{self.full}; make room and run this again, only what is missing is done")

    def _save(self) -> None:
        """Append to the journals what they lack."""
        began = time.perf_counter()
        self.full = None
        while self._unsaved:
            shard, data = self._unsaved[0]
            path = self._journal(shard)
            try:
                with path.open("ab", buffering=0) as file:
                    place, record = file.tell(), _HEAD.pack(len(data), zlib.crc32(data)) + data
                    try:
                        if file.write(record) < len(record):  # what a full disk does before it says so
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    except OSError:
                        file.truncate(place)
                        raise
            except OSError as error:
                self.full = OutputError(f"cannot write {path}: {error.strerror}")
                break
            del self._unsaved[0]
        self.seconds += time.perf_counter() - began

    def _replay(self, shard: int) -> Iterator[bytes]:
        """The whole rows of a journal; what follows them is cut off."""
        path = self._journal(shard)
        if not path.exists():
            return
        with path.open("r+b") as file:
            good = 0
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                size, checksum = _HEAD.unpack(head)
                data = file.read(size)
                if len(data) < size or not size or zlib.crc32(data) != checksum:
                    break
                good = file.tell()
                yield data
            file.truncate(good)

    def _finish(self, shard: int) -> None:
        """Write a shard of which all rows are there."""
        rows = self._rows[shard]
        if len(rows) < self.plan.first[shard + 1] - self.plan.first[shard]:
            return
        began = time.perf_counter()
        table = pa.Table.from_batches((from_bytes(rows[index]) for index in sorted(rows)), self.info.work_schema)
        try:
            self._write_errors(table.filter(pc.is_valid(table["error"])).select(_ERROR_COLUMNS))
            good = table.filter(pc.is_null(table["error"])).select(self.info.schema.names)
            save_table(good.cast(self.info.schema), shard_path(self.directory, shard))
        except OutputError as error:
            self.full = error
            self._late.add(shard)
            return
        finally:
            self.seconds += time.perf_counter() - began
        self._late.discard(shard)
        del self._rows[shard]
        self._unsaved = [one for one in self._unsaved if one[0] != shard]
        self._journal(shard).unlink(missing_ok=True)

    def _write_errors(self, added: pa.Table) -> None:
        """Add to the table of errors, which is written anew; what is there already stays once."""
        if not added.num_rows:
            return
        path = self.directory / ERRORS
        if path.exists():
            old = pq.read_table(path, partitioning=None)
            new = pc.invert(pc.is_in(added["index"], value_set=old["index"].combine_chunks()))
            added = pa.concat_tables([one.replace_schema_metadata(None) for one in (old, added.filter(new))])
        save_table(added.sort_by("index").replace_schema_metadata(self.info.metadata()), path)

    def _journal(self, shard: int) -> Path:
        return self.directory / f".rows-{shard:05d}"
