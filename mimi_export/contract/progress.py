"""How work tells how far it is: a line for each step, or a step with how much of it is done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
Advance = Callable[[str, float, float], None]  # step, done, of how many; 0 of 0 where no end is known


def no_progress(*_: object) -> None:
    """Take a report and do nothing."""
