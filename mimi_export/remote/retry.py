"""Trying again what may pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mimi_export.errors import TransientError

ATTEMPTS = 3
FIRST_PAUSE = 1.0  # seconds; doubled after each attempt

T = TypeVar("T")
logger = logging.getLogger(__name__)


def retried(what: str, ask: Callable[[], T]) -> T:
    """Call `ask`, which does `what`, up to `ATTEMPTS` times while it raises `TransientError`."""
    for attempt in range(ATTEMPTS - 1):
        pause = FIRST_PAUSE * 2**attempt
        try:
            return ask()
        except TransientError as error:
            logger.info("%s: %s; again in %g s", what, error, pause)
        time.sleep(pause)
    return ask()
