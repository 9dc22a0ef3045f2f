"""The plan of a corpus: every utterance in a fixed order, and which shard it belongs to.

It lies in the output as `_plan.parquet` from the first moment on. A later run with the same inputs finds all of them in
it and adds nothing; new inputs come behind, in shards of their own. So shards depend on the inputs and on nothing else:
not on the engine, nor on how many workers there were, nor on when one of them was killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mimi_export.corpus.inputs import Utterance
from mimi_export.corpus.rows import CorpusInfo, save_table
from mimi_export.errors import ConfigError, OutputError, some

PLAN = "_plan.parquet"
SHARD_ROWS = 1000
SHARD_SECONDS = 36_000.0  # of sound; codes of 8 codebooks are 7 MB then
LATENT_SECONDS = 1800.0  # where latents are kept, too: 50 MB
BYTES_A_SECOND = 32_000  # of sound whose duration is not known: 16 kHz, 16 bits
SCHEMA = pa.schema([
    ("id", pa.string()), ("path", pa.string()), ("member", pa.string()), ("start", pa.int64()), ("size", pa.int64()),
    ("offset", pa.float64()), ("duration", pa.float64()), ("channel", pa.int32()),
    ("index", pa.int64()), ("shard", pa.int32()),
])  # fmt: skip


class Plan:
    """The utterances of a corpus, by index.

    Attributes:
        table: a row for each, with `SCHEMA`.
        first: the index at which each shard begins, and behind them the number of utterances.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        shards = table["shard"].to_numpy()
        self.first: npt.NDArray[np.int64] = np.searchsorted(shards, np.arange(shards[-1] + 2 if len(shards) else 1))

    def utterances(self, indices: npt.NDArray[np.int64]) -> Iterator[tuple[int, Utterance]]:
        """These utterances with their indices, made as they are asked for."""
        for start in range(0, len(indices), 1000):
            for row in self.table.take(indices[start : start + 1000]).to_pylist():
                yield row["index"], Utterance.of(row)


def durations(table: pa.Table) -> npt.NDArray[np.float64]:
    """Seconds of each utterance of a plan as far as they were given, else NaN."""
    values: npt.NDArray[np.float64] = table["duration"].to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def read_plan(directory: Path) -> tuple[Plan, CorpusInfo] | None:
    """The plan of an output, if there is one yet."""
    path = directory / PLAN
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, partitioning=None)
    except pa.ArrowException as error:
        raise OutputError(
            f"{path} is damaged: {str(error).splitlines()[0]}; delete the folder and begin anew"
        ) from error
    return Plan(table), CorpusInfo.read(table.schema, path)


def make_plan(directory: Path, info: CorpusInfo, found: Iterator[Utterance]) -> Plan:
    """The plan of an output with what is found now, written down where that is new.

    Raises:
        ConfigError: two utterances have one id, or the output holds codes of another variant.
        OutputError: it cannot be written.
    """
    known = read_plan(directory)
    if known is not None and known[1] != info:
        raise ConfigError(
            f"{directory} holds codes of {known[1].variant} ({known[1].num_codebooks} codebooks), not of these "
            f"files of {info.variant} with these options; choose another directory"
        )
    old = known[0].table if known else SCHEMA.empty_table()
    new = _table(found)
    counts = new["id"].value_counts()
    twice = [one["values"] for one in counts.filter(pc.greater(counts.field("counts"), 1))[:4].to_pylist()]
    if twice:
        raise ConfigError(f"two inputs have the id {some(twice, 1)}; give ids of their own in a list (.jsonl)")
    new = new.filter(pc.invert(pc.is_in(new["id"], value_set=old["id"].combine_chunks())))
    if known is not None and not new.num_rows:
        return known[0]
    start = old["shard"][-1].as_py() + 1 if old.num_rows else 0
    shards = pa.array(_shards(new, LATENT_SECONDS if info.hidden_size else SHARD_SECONDS) + start, pa.int32())
    indices = pa.array(np.arange(new.num_rows) + old.num_rows, pa.int64())
    added = new.append_column("index", indices).append_column("shard", shards)
    table = pa.concat_tables([old.replace_schema_metadata(None), added.cast(SCHEMA)])
    save_table(table.replace_schema_metadata(info.metadata()), directory / PLAN)
    return Plan(table)


def _table(found: Iterator[Utterance]) -> pa.Table:
    kept = pa.schema(list(SCHEMA)[:-2])
    parts = []
    while part := [asdict(utterance) for utterance in islice(found, 10_000)]:
        parts.append(pa.RecordBatch.from_pylist(part, kept))
    return pa.Table.from_batches(parts, kept)


def _shards(table: pa.Table, most_seconds: float) -> npt.NDArray[np.int32]:
    """The shard of each row: rows in order, until there are `SHARD_ROWS` or about `most_seconds`."""
    seconds = durations(table)
    seconds = np.where(np.isnan(seconds), table["size"].to_numpy() / BYTES_A_SECOND, seconds)
    shards, shard, rows, total = np.zeros(len(seconds), np.int32), 0, 0, 0.0
    for row, length in enumerate(seconds):
        if rows and (rows == SHARD_ROWS or total + length > most_seconds):
            shard, rows, total = shard + 1, 0, 0.0
        rows, total = rows + 1, total + length
        shards[row] = shard
    return shards
