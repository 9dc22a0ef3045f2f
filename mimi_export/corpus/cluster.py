"""The engine for many machines: Ray Data maps utterances to rows with a pool of actors and writes them as Parquet.

The output and the inputs lie where all machines see them. What Ray writes lands in `.ray/` of the output, a file for
each batch; the driver follows it, and shards are made of rows as with the other engine. Whole files of a run that was
killed are taken first: what they hold is not done again, and what a task left half-written is not read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data

from mimi_export.corpus.encoder import CorpusEncoder, Settings
from mimi_export.corpus.store import Landing
from mimi_export.errors import StreamError

BATCHES_OF_ROWS = 8  # utterances in a batch, for each that goes through a call at once: few wait for the last one
POLL_SECONDS = 0.5


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, with a core more for what writes.

    Raises:
        StreamError: it cannot be reached or started.
    """
    # "local" is a cluster of its own, even where another one runs on this machine already.
    own = {"address": "local", "num_cpus": workers + 1, "include_dashboard": False}
    where_to: dict[str, Any] = {"address": address} if address else own
    try:
        ray.init(**where_to, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises bare ones, too
        where = address or "this machine"
        raise StreamError(f"Ray on {where} cannot be reached or started: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_ray(settings: Settings, rows: int, todo: pa.Table, landing: Landing, workers: int) -> Iterator[bytes]:
    """Rows as bytes for all utterances of `todo`, in no order; inside `cluster`.

    `rows` utterances go through a call of an actor at once.

    Raises:
        StreamError: Ray gives up.
    """
    landing.rows.mkdir(parents=True, exist_ok=True)
    size = max(1, min(BATCHES_OF_ROWS * rows, todo.num_rows // workers))
    blocks = [todo.slice(start, size).combine_chunks() for start in range(0, todo.num_rows, size)]
    failure: list[Exception] = []

    def work() -> None:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            ray.data.from_arrow(blocks).map_batches(
                CorpusEncoder,
                fn_constructor_args=(settings,),
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=1,
                batch_size=None,  # a block
                batch_format="pyarrow",
            ).write_parquet(str(landing.rows))
        except Exception as error:  # noqa: BLE001 - of any kind: the driver raises it
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        yield from landing.new()
    if failure:
        raise StreamError(f"Ray gave up: {(str(failure[0]).splitlines() or ['no reason given'])[0]}")
