"""What a corpus is read for: one row to decode it, tar shards of WebDataset, and Shar of Lhotse.

Hugging Face `datasets` reads the Parquet files: `load_dataset("parquet", data_files="DIR/codes-*.parquet")`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mimi_export.contract.files import atomic_directory
from mimi_export.corpus.rows import CorpusInfo, matrix
from mimi_export.corpus.store import read_errors, shards
from mimi_export.errors import CodesError
from mimi_export.media.codes import CodesFile, CodesMetadata

MATRICES = ("codes", "latents")
Row = tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]


def read_row(directory: Path, identity: str) -> CodesFile:
    """The codes `[1, K, T]` of the utterance with this id.

    Raises:
        CodesError: the folder holds no corpus, or has no such row, or a damaged one.
    """
    paths = shards(directory)
    try:
        for path in paths:
            wanted = {"columns": ["codes", "samples"], "filters": [("id", "=", identity)]}
            table = pq.read_table(path, partitioning=None, **wanted)
            if not table.num_rows:
                continue
            info = CorpusInfo.read(table.schema, path)
            samples = table["samples"][0].as_py()
            metadata = CodesMetadata(info.sampling_rate, info.frame_size, samples, info.model)
            return CodesFile(matrix(table["codes"][0])[None].astype(np.int64), metadata)
        for error in read_errors(directory):
            if error["id"] == identity:
                raise CodesError(f"{identity} could not be encoded: {error['error']}")
    except (pa.ArrowException, OSError) as error:
        raise CodesError(f"{directory} holds a damaged table: {str(error).splitlines()[0]}") from error
    if not paths:
        raise CodesError(f"{directory} holds no corpus; `mimi-export tokenize` makes one")
    raise CodesError(f"{directory} has no row with the id {identity!r}")


def export_corpus(directory: Path, output: Path, form: str) -> int:
    """Write a corpus anew as `webdataset` or `lhotse`; the number of rows.

    Raises:
        CodesError: there is no corpus.
        OutputError: the output is there already, or cannot be written.
    """
    paths = shards(directory)
    if not paths:
        raise CodesError(f"{directory} holds no corpus; `mimi-export tokenize` makes one")
    info = CorpusInfo.read(pq.read_schema(paths[0]), paths[0])
    with atomic_directory(output) as temporary:
        return _lhotse(paths, info, temporary) if form == "lhotse" else _webdataset(paths, temporary)


def _rows(path: Path) -> Iterator[Row]:
    """What is plain of each row, and its matrices."""
    for batch in pq.ParquetFile(path).iter_batches():
        plain = batch.select([name for name in batch.schema.names if name not in MATRICES]).to_pylist()
        for number, values in enumerate(plain):
            yield values, {name: matrix(batch[name][number]) for name in MATRICES if name in batch.schema.names}


def _webdataset(paths: list[Path], output: Path) -> int:
    """`<key>.codes.npy` and `<key>.json`; a key ends at its first dot, so those of ids become underscores."""
    count = 0
    for path in paths:
        with tarfile.open(output / f"{path.stem}.tar", "w") as archive:
            for values, matrices in _rows(path):
                key, count = values["id"].lstrip("/").replace(".", "_"), count + 1
                files = {"json": json.dumps(values).encode()}
                for name, array in matrices.items():
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    files[f"{name}.npy"] = buffer.getvalue()
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return count


def _lhotse(paths: list[Path], info: CorpusInfo, output: Path) -> int:
    """A cut for each row, with `TemporalArray`s."""
    import lhotse
    from lhotse.shar import SharWriter

    shift, count = info.frame_size / info.sampling_rate, 0
    axes = {"codes": 1, "latents": 0}
    fields = {name: "numpy" for name in MATRICES if name in info.schema.names}
    with SharWriter(str(output), fields, shard_size=1000) as writer:
        for path in paths:
            for values, matrices in _rows(path):
                cut = lhotse.MonoCut(values["id"], 0, values["duration"], values["channel"] or 0, custom=dict(values))
                for name, array in matrices.items():
                    cut = cut.attach_tensor(name, array.copy(), frame_shift=shift, temporal_dim=axes[name])
                writer.write(cut)
                count += 1
    return count
