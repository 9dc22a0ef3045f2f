"""Refuse to read what would wait for ever: a pipe or a device where a file is expected."""

from __future__ import annotations

import stat
from pathlib import Path

from mimi_export.errors import MimiExportError

PIPE = Path("-")  # standard input or output


def check_file(path: Path, error: type[MimiExportError]) -> int:
    """The size in bytes of a regular file that can be read; for anything else an `error` that says why not."""
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise error(f"{path} is a pipe or a device, expected a regular file; save what it gives to a file first")
        with path.open("rb"):  # libraries name no reason; the operating system does
            return found.st_size
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}") from reason
