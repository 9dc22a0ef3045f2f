"""Tokenise a corpus: plan it, let an engine encode what is missing, keep every row, and say how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mimi_export.contract.directory import load_artifact
from mimi_export.corpus.encoder import CorpusEncoder, Settings
from mimi_export.corpus.inputs import find
from mimi_export.corpus.local import run_local
from mimi_export.corpus.plan import Plan, durations, make_plan
from mimi_export.corpus.rows import WORK_COLUMNS, CorpusInfo
from mimi_export.corpus.store import Landing, Store, locked, read_errors
from mimi_export.errors import OutputError
from mimi_export.runtime.processor import usable_cores

REPORT_SECONDS = 1.0


@dataclass
class Summary:
    """How far a run is, or what came of it.

    Attributes:
        utterances: all of the plan.
        before: done by earlier runs, those that failed included.
        done: rows of this run.
        failed: utterances without a row, of earlier runs, too.
        seconds: since the run began; `done_seconds` and `left_seconds` are of sound, what is left is an estimate.
        where: seconds of all workers together in reading, resampling and encoding, and the driver's in writing.
    """

    workers: int
    utterances: int = 0
    before: int = 0
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    done_seconds: float = 0.0
    left_seconds: float = 0.0
    where: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "resample", "encode", "write"), 0.0))

    @property
    def speed_per_core(self) -> float:
        """Seconds of sound in a second of one worker."""
        return self.done_seconds / max(self.seconds * self.workers, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "speed_per_core": self.speed_per_core}


class Left:
    """How much sound is left: durations that are known, and for the rest bytes at the rate of those that are done.

    A minute of FLAC has several times the bytes of one of Ogg, so each ending has a rate of its own.
    """

    def __init__(self, plan: Plan, chosen: npt.NDArray[np.int64]) -> None:
        self._seconds = durations(plan.table)
        self._sizes = np.maximum(plan.table["size"].to_numpy(), 1.0)  # where bytes are not known, each counts for one
        found = pc.extract_regex(plan.table["path"], r"\.(?P<ending>[^./\\]+)$")  # nothing where there is none
        endings = pc.fill_null(pc.utf8_lower(pc.struct_field(found, "ending")), "").combine_chunks()
        self._kinds = endings.dictionary_encode().indices.to_numpy()
        unknown = np.isnan(self._seconds[chosen])
        self._known = float(self._seconds[chosen][~unknown].sum())
        rows, count = chosen[unknown], self._kinds.max(initial=0) + 1
        self._bytes = np.bincount(self._kinds[rows], self._sizes[rows], count)
        self._done = np.zeros((2, count))  # bytes and seconds

    def done(self, index: int, seconds: float) -> None:
        """One is done, or failed after no seconds."""
        kind, size = self._kinds[index], self._sizes[index]
        if np.isnan(self._seconds[index]):
            self._bytes[kind] -= size
            self._done[:, kind] += size, seconds
        else:
            self._known -= float(self._seconds[index])

    @property
    def seconds(self) -> float:
        """The estimate; an ending of which nothing is done yet has the rate of all."""
        sizes, seconds = self._done
        rates = np.where(sizes > 0, seconds / np.maximum(sizes, 1), seconds.sum() / max(sizes.sum(), 1))
        return max(0.0, self._known + float(self._bytes @ rates))


def tokenize(
    inputs: Sequence[str],
    directory: Path,
    settings: Settings,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    address: str | None = None,
    report: Callable[[Summary], None] = lambda _: None,
) -> tuple[Summary, list[dict[str, Any]]]:
    """Encode what the inputs hold and the output lacks.

    Args:
        inputs: see `inputs`.
        directory: the output; it is made.
        settings: of the workers.
        engine: what distributes the work.
        workers: processes or actors; one a core unless given.
        address: of a Ray cluster.
        report: is told how far it is, every second or so.

    Returns:
        The summary, and the errors of this output with their reasons.

    Raises:
        ConfigError: an input is not there or of no known kind, two utterances have one id, or the output holds codes
            of something else.
        ArtifactError, ParityError: the variant cannot be used here.
        OutputError: the output cannot be written, or another run writes to it.
        MissingPackageError: `ray` is not installed.
    """
    began = time.monotonic()
    info = CorpusInfo.of(load_artifact(settings.variant), settings.num_codebooks, settings.latents)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror}") from error
    with locked(directory):
        plan = make_plan(directory, info, find(list(inputs)))
        store = Store(directory, plan, info)
        landing = Landing(directory, info)
        for data in landing.new():
            store.add(data)
        missing, total = store.missing(), plan.table.num_rows
        state = Summary(workers or usable_cores(), total, total - len(missing), failed=len(read_errors(directory)))
        if not len(missing):
            store.close()
            landing.clear()
            return state, read_errors(directory)
        # Once here: what is wrong is told in a line, and the prepared graph is made once.
        at_once = CorpusEncoder(settings).rows
        left, told = Left(plan, missing), time.monotonic()
        with ExitStack() as stack:
            if engine == "local":
                rows = run_local(settings, info, plan.utterances(missing), state.workers)
            else:
                from mimi_export.corpus.cluster import cluster, run_ray

                stack.enter_context(cluster(address, state.workers))
                rows = run_ray(settings, at_once, plan.table.take(missing), landing, state.workers)
            for data in rows:
                row = store.add(data)
                if row is not None:
                    _count(state, left, row)
                now = time.monotonic()
                if now - told > REPORT_SECONDS:
                    told, state.seconds, state.left_seconds = now, now - began, left.seconds
                    state.where["write"] = store.seconds
                    report(state)
        store.close()
        landing.clear()
        errors = read_errors(directory)
        state.failed = len(errors)
        state.seconds, state.left_seconds, state.where["write"] = time.monotonic() - began, left.seconds, store.seconds
        return state, errors


def _count(state: Summary, left: Left, row: pa.RecordBatch) -> None:
    (values,) = row.select(["duration", *WORK_COLUMNS]).to_pylist()
    state.done += 1
    state.failed += values["error"] is not None
    state.done_seconds += values["duration"]
    for name, column in (("read", "reading"), ("resample", "resampling"), ("encode", "encoding")):
        state.where[name] += values[column]
    left.done(values["index"], values["duration"])
