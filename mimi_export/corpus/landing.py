"""Rows that Ray has written: a file for each batch in `.ray/rows` of the output, until all of them are in shards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mimi_export.corpus.rows import CorpusInfo, to_bytes


class Landing:
    """Follows what arrives; each whole file is read once."""

    def __init__(self, directory: Path, info: CorpusInfo) -> None:
        self.folder = directory.resolve() / ".ray"
        self.rows = self.folder / "rows"
        self._info = info
        self._seen: set[Path] = set()

    def new(self) -> Iterator[bytes]:
        """The rows of files that are whole and were not read yet."""
        for path in sorted(self.rows.glob("*.parquet")):
            if path in self._seen:
                continue
            try:
                table = pq.read_table(path, partitioning=None)
            except (pa.ArrowException, OSError):  # it is being written, or whoever wrote it was killed
                continue
            self._seen.add(path)
            table = table.select(self._info.work_schema.names).cast(self._info.work_schema)
            for batch in table.combine_chunks().to_batches(max_chunksize=1):
                yield to_bytes(batch)

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
