"""Turns of threads on the processor's cores: as many compute at once as there are cores, the others wait.

Two calls at once on one core take twice as long each; one after another, the first is done in half the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Hands out turns, first to whose data have waited longest.

    Args:
        cores: turns at a time.
    """

    def __init__(self, cores: int) -> None:
        self._free = cores
        self._waiting: list[float] = []
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, since: float) -> Iterator[None]:
        """Wait for a turn and have it; `since` is when the data were complete."""
        with self._changed:
            self._waiting.append(since)
            self._changed.wait_for(lambda: self._free > 0 and min(self._waiting) == since)
            self._waiting.remove(since)
            self._free -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
