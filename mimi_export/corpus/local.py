"""The engine for one machine: a process a core, each with a session of one thread and rows of its own.

The driver deals utterances out over pipes and takes rows back as they end. A worker that dies is replaced; what it was
at goes through the new one alone, one after the other, and an utterance that dies so again is an error of its own.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from typing import Any

from mimi_export.corpus.encoder import CorpusEncoder, Settings
from mimi_export.corpus.inputs import Utterance
from mimi_export.corpus.rows import CorpusInfo, from_bytes, to_bytes, work_row
from mimi_export.errors import StreamError

MOST_STARTS = 3  # of a worker that is never ready
AHEAD = 2  # utterances that wait at a worker for a free row
Item = tuple[int, Utterance]


def serve(pipe: Connection, settings: Settings) -> None:
    """A worker: rows as bytes for utterances, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends this process
    encoder = CorpusEncoder(settings)

    def take(wait: bool) -> Item | None:
        found: Item | None = pipe.recv() if wait or pipe.poll() else None
        return found

    try:
        pipe.send(encoder.rows)
        for row in encoder.run(take):
            pipe.send_bytes(to_bytes(row))
    except (EOFError, OSError):  # the driver was killed
        return


class _Worker:
    """The driver's side of a worker."""

    def __init__(self, context: Any, settings: Settings, suspects: Iterable[Item] = (), starts: int = 1) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, settings), daemon=True)
        self.process.start()
        other.close()
        self.room = 0  # how many utterances it should have; 0 until it is ready
        self.doing: dict[int, Item] = {}
        self.suspects = deque(suspects)
        self.alone = False  # whether what it does is a suspect
        self.starts = starts  # of which all but the last one ended before the worker was ready

    def deal(self, waiting: Iterator[Item]) -> bool:
        """Hand out one utterance if there is room; whether one was."""
        if len(self.doing) >= (min(self.room, 1) if self.suspects or self.alone else self.room):
            return False
        self.alone = bool(self.suspects)
        item = self.suspects.popleft() if self.suspects else next(waiting, None)
        if item is None:
            return False
        self.doing[item[0]] = item
        try:
            self.pipe.send(item)
        except OSError:  # it died; the driver sees that next
            return False
        return True

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def run_local(settings: Settings, info: CorpusInfo, waiting: Iterator[Item], workers: int) -> Iterator[bytes]:
    """Rows as bytes for all utterances, in the order in which they end.

    Raises:
        StreamError: a worker ends before it has anything to do.
    """
    context = get_context("spawn")
    crew = [_Worker(context, settings) for _ in range(workers)]
    try:
        while True:
            while sum(worker.deal(waiting) for worker in crew):  # one to each in turn, so that few go to all workers
                pass
            if not any(worker.doing or worker.suspects for worker in crew) and all(worker.room for worker in crew):
                return
            for pipe in connection.wait([worker.pipe for worker in crew]):
                worker = next(one for one in crew if one.pipe is pipe)
                try:
                    if not worker.room:
                        worker.room = worker.pipe.recv() + AHEAD
                        continue
                    data = worker.pipe.recv_bytes()
                except (EOFError, OSError):
                    worker.close()
                    suspects = [*worker.doing.values(), *worker.suspects]
                    if worker.alone and worker.doing:
                        index, utterance = suspects.pop(0)
                        yield to_bytes(work_row(info, index, utterance, error=f"{utterance.place} ends its worker"))
                    if not worker.room and worker.starts == MOST_STARTS:
                        code = worker.process.exitcode
                        raise StreamError(f"a worker ended with exit code {code} before it was ready") from None
                    starts = 1 if worker.room else worker.starts + 1
                    crew[crew.index(worker)] = _Worker(context, settings, suspects, starts)
                    continue
                del worker.doing[from_bytes(data)["index"][0].as_py()]
                yield data
    finally:
        for worker in crew:
            worker.close()
