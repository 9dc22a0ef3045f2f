"""The samples of an utterance, wherever they lie."""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mimi_export.corpus.inputs import Utterance, audio_column, open_table
from mimi_export.errors import AudioError, MimiExportError
from mimi_export.media.audio import AudioReader, Samples


class Sound:
    """Opens utterances; a table stays open from one to the next.

    Attributes:
        reading, resampling: seconds that both have taken so far.
    """

    def __init__(self, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self.reading = self.resampling = 0.0
        self._table: tuple[str, _Table] | None = None

    def blocks(self, utterance: Utterance) -> Iterator[Samples]:
        """Blocks `[n]` of float32 samples; `AudioError` for all that is wrong, in words that stay the same."""
        place = utterance.place
        with self._file(utterance) as path:
            try:
                separate = utterance.channel is not None
                with AudioReader(
                    path, self.sampling_rate, separate=separate, offset=utterance.offset, duration=utterance.duration
                ) as reader:
                    channel = utterance.channel or 0
                    if channel >= (reader.rows or 1):
                        raise AudioError(f"{place} has {reader.rows} channel(s), none has the number {channel}")
                    before = reader.reading, reader.resampling
                    for block in reader:
                        self.reading += reader.reading - before[0]
                        self.resampling += reader.resampling - before[1]
                        before = reader.reading, reader.resampling
                        yield block[channel] if separate else block
            except MimiExportError as error:
                raise AudioError(str(error).replace(str(path), place)) from error
            except Exception as error:  # one recording must not stop all others, whatever is wrong
                reason = (str(error).splitlines() or ["no reason given"])[0].replace(str(path), place)
                raise AudioError(f"{place} cannot be read: {type(error).__name__}: {reason}") from error

    @contextmanager
    def _file(self, utterance: Utterance) -> Iterator[Path]:
        """A file of its own; what lies inside another one is copied out."""
        if utterance.member is None:
            yield Path(utterance.path)
            return
        with tempfile.NamedTemporaryFile(suffix=Path(utterance.member).suffix) as file:
            try:
                copy = _copy_member if utterance.path.lower().endswith(".tar") else self._copy_row
                outside = copy(utterance, file)
                file.flush()
            except (OSError, pa.ArrowException) as error:
                reason = (str(error).splitlines() or ["no reason given"])[0]
                raise AudioError(f"{utterance.place} cannot be read: {reason}") from error
            yield outside or Path(file.name)

    def _copy_row(self, utterance: Utterance, file: IO[bytes]) -> Path | None:
        """Copy the bytes of a row of a table; or the file that they lie in, where the row names one."""
        if self._table is None or self._table[0] != utterance.path:
            self._table = utterance.path, _Table(Path(utterance.path))
        value = self._table[1].audio(utterance.start)
        if value["bytes"] is not None:
            file.write(value["bytes"])
            return None
        if value.get("path"):
            return Path(utterance.path).parent / str(value["path"])
        raise AudioError(f"{utterance.place} holds neither sound nor a path")


class _Table:
    """The column of sound of a table, read a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._group, self._values = -1, None
        self._file, schema = open_table(path)
        self._column = audio_column(schema)
        if isinstance(self._file, pq.ParquetFile):
            counts = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        else:
            self._file = self._file.read_all().to_batches()  # nothing is copied
            counts = [batch.num_rows for batch in self._file]
        self._ends = list(accumulate(counts))

    def audio(self, row: int) -> dict[str, Any]:
        """`bytes` and `path` of a row."""
        group = bisect.bisect_right(self._ends, row)
        if group != self._group:
            if isinstance(self._file, list):
                self._values = self._file[group].column(self._column)
            else:
                self._values = self._file.read_row_group(group, [self._column]).column(0)
            self._group = group
        found: dict[str, Any] = self._values[row - (self._ends[group - 1] if group else 0)].as_py()  # type: ignore[index]
        return found


def _copy_member(utterance: Utterance, file: IO[bytes]) -> None:
    """Copy the bytes of a member of an archive."""
    with Path(utterance.path).open("rb") as archive:
        archive.seek(utterance.start)
        left = utterance.size
        while left and (block := archive.read(min(left, 1 << 20))):
            file.write(block)
            left -= len(block)
    if left:
        raise AudioError(f"{utterance.place} is cut off: the archive ends {left} bytes too early")
