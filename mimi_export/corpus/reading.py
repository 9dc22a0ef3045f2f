"""One row of a corpus, to decode it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimi_export.corpus.rows import CorpusInfo, matrix
from mimi_export.corpus.store import ERRORS, shards
from mimi_export.errors import CodesError
from mimi_export.media.codes import CodesFile, CodesMetadata


def read_row(directory: Path, identity: str) -> CodesFile:
    """The codes `[1, K, T]` of the utterance with this id.

    Raises:
        CodesError: the folder holds no corpus, or has no such row, or a damaged one.
    """
    paths = shards(directory)
    try:
        for path in paths:
            table = pq.read_table(
                path, columns=["codes", "samples"], filters=[("id", "=", identity)], partitioning=None
            )
            if not table.num_rows:
                continue
            info = CorpusInfo.read(table.schema, path)
            samples = table["samples"][0].as_py()
            metadata = CodesMetadata(info.sampling_rate, info.frame_size, samples, info.model)
            return CodesFile(matrix(table["codes"][0])[None].astype(np.int64), metadata)
        for error in pq.read_table(directory / ERRORS).to_pylist() if (directory / ERRORS).exists() else []:
            if error["id"] == identity:
                raise CodesError(f"{identity} could not be encoded: {error['error']}")
    except (pa.ArrowException, OSError) as error:
        raise CodesError(f"{directory} holds a damaged table: {str(error).splitlines()[0]}") from error
    if not paths:
        raise CodesError(f"{directory} holds no corpus; `mimi-export tokenize` makes one")
    raise CodesError(f"{directory} has no row with the id {identity!r}")
