"""What commands show: results on stdout (a table or one JSON object), progress on stderr.

On a terminal progress is a moving line; elsewhere (logs, pipes) plain lines, few enough to read.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 10.0  # between plain lines of one step
PIPE_WIDTH = 120


def show_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN and infinity raise `ValueError`, for JSON has none."""
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_rows(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print a title and a list of names and values; what is `None` is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            table.add_row(Text(name), Text(str(value)))
    _print(Text(title, "bold"), table)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are aligned on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    _print(Text(), table)


def _print(*parts: Text | Table) -> None:
    # made here and not once at import, because tests and callers replace sys.stdout
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    for part in parts:
        console.print(part)


def note(text: str) -> None:
    """Tell the user something on stderr that is neither result nor progress."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"note: {text}"))


class Steps:
    """The steps of one command.

        with Steps() as steps:
            steps.step("loading the model")            # a line, or a moving clock
            steps.advance("encoding", 40, 100)         # the same step, 40 of 100 done

    The moving clock disappears at the end.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, text: str) -> None:
        """Begin a step of unknown length."""
        self._text = text
        self._last = time.monotonic()
        if self._bar is None:
            self._line(text)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=None)

    def advance(self, text: str, done: float, total: float | None = None, detail: str = "") -> None:
        """Say how far a step is; another `text` begins another step, another `detail` does not."""
        if text != self._text:
            self.step(text)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total or None, description=f"{text} {detail}")
        elif total and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self._line(f"{text} {100 * done / total:.0f} %{detail and f', {detail}'}")

    def _line(self, text: str) -> None:
        self._console.print(Text(f"[{time.monotonic() - self._begin:6.1f} s] {text}"))
