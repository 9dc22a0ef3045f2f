"""Files that are written whole, when a `with` block ends well."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mimi_export.contract.files import atomic_file
from mimi_export.errors import CodesError

Writer = TypeVar("Writer", bound="WholeFileWriter")


def check_extension(path: Path, formats: Collection[str]) -> None:
    """`CodesError` unless the path ends in one of `formats`."""
    if path.suffix.lower() not in formats:
        raise CodesError(f"{path} has the extension {path.suffix or '(none)'}, expected {' or '.join(formats)}")


class WholeFileWriter(ABC):
    """Collect something and write it when the `with` block ends without an exception.

    Raises:
        CodesError: unknown extension.
        OutputError: the file exists and `force` is not given, or cannot be written; before anything is collected.
    """

    def __init__(self, path: Path, formats: Collection[str], force: bool) -> None:
        check_extension(path, formats)
        self.path = self._temporary = path
        self._force = force
        self._stack = ExitStack()

    def __enter__(self: Writer) -> Writer:  # noqa: PYI019 - `typing.Self` is of Python 3.11
        self._temporary = self._stack.enter_context(atomic_file(self.path, self._force))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._write(self._temporary)

    @abstractmethod
    def _write(self, temporary: Path) -> None:
        """Write what was collected."""
