"""Outputs that are either complete or absent: files and directories written beside their place, then renamed.

A rename inside one file system is atomic, so whoever reads the target sees the old content or the whole new one.
A process that is killed outright (`SIGKILL`) leaves hidden files or directories, whose name begins with a dot and the
target's name. They block nothing, and the next run with that target removes those that a day has passed over.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mimi_export.errors import MimiExportError, OutputError

BLOCK_BYTES = 1 << 20
ABANDONED_SECONDS = 86_400.0  # since remains were last written to: their process is gone
DIRECTORY_MARKER = "manifest.json"
OLD = ".old"  # ends the name of a directory that makes place for a new one
_OUTPUT_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM})


@contextmanager
def atomic_file(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends without an exception.

    The temporary file exists, is empty and has the suffix of `path`. It is removed whatever ends the block. A
    symbolic link is followed: its target is replaced, not the link.

    Args:
        path: the file to write; its folder must exist.
        force: replace a file that is already there.

    Raises:
        OutputError: `path` exists and `force` is not given, is no regular file, cannot be created, or the disk
            filled up inside the block.
    """
    shown, target = Path(path), Path(path).resolve()
    _refuse_file(shown, target, force)
    _clear_remains(target)
    temporary = _temporary(target, target.suffix)
    with _output_errors(shown):
        temporary.touch(exist_ok=False)
    try:
        with _output_errors(shown):
            yield temporary
            _refuse_file(shown, target, force)  # again: the block may have taken hours
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    path: str | os.PathLike[str], force: bool = False, marker: str = DIRECTORY_MARKER
) -> Iterator[Path]:
    """Yield a new temporary directory beside `path`; it becomes `path` when the block ends without an exception.

    Missing parents are created. An existing empty directory counts as absent. With `force` an existing directory
    is moved aside only when the new one is complete, put back if the swap fails, and deleted last.

    Args:
        path: the directory to write.
        force: replace a directory that is already there, provided that it holds a file called `marker`.
        marker: what tells a directory made by this program from a user's own, which is never deleted.

    Raises:
        OutputError: as for `atomic_file`; or the existing directory has no `marker`.
    """
    shown, target = Path(path), Path(path).resolve()
    refuse_taken(shown, force, marker)
    _clear_remains(target)
    temporary = _temporary(target)
    with _output_errors(shown):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with _output_errors(shown):
            yield temporary
            refuse_taken(shown, force, marker)
            _swap_directory(temporary, target, force, shown)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already on success; else the first error matters


def is_taken(path: Path) -> bool:
    """Whether anything but an empty directory lies there."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def refuse_taken(path: Path, force: bool = False, marker: str = DIRECTORY_MARKER) -> None:
    """Raise what `atomic_directory` would, for a command that works for minutes before it writes."""
    if not is_taken(path):
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file, expected the name of a directory to write")
    if not force:
        raise OutputError(f"{path} exists already; choose another directory or replace it with --force")
    if not (path / marker).is_file():
        raise OutputError(f"{path} was not made by mimi-export (it has no {marker}), so --force does not delete it")


def cache_root() -> Path:
    """Where this program keeps what it made or fetched: `$MIMI_EXPORT_CACHE`, or `mimi-export` in the user's cache."""
    own = os.environ.get("MIMI_EXPORT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mimi-export"


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content in hexadecimal, in constant memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _temporary(target: Path, suffix: str = "") -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{suffix}")


def scratch_directory(name: str) -> tempfile.TemporaryDirectory[str]:
    """A directory for one run in the system's place for such; those of killed runs are removed after a day."""
    prefix = f"mimi-{name}-"
    _remove_abandoned(Path(tempfile.gettempdir()).glob(f"{prefix}*"))
    return tempfile.TemporaryDirectory(prefix=prefix)


def _clear_remains(target: Path) -> None:
    """Remove what runs left that were killed while they wrote this target; what made place only where there is one.

    What was written for a temporary directory of the target, as `build` does, has a second dot and number.
    """
    name, number = re.escape(target.name), r"\.[0-9a-f]{8}"
    pattern = re.compile(rf"\.(\.{name}{number}|{name}){number}(\.[^.]*)?")
    found = target.parent.glob(f".*{glob.escape(target.name)}.*")
    _remove_abandoned(p for p in found if pattern.fullmatch(p.name) and (p.suffix != OLD or target.exists()))


def _remove_abandoned(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # another run took it, or it is another user's
            newest = max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
            if time.time() - newest > ABANDONED_SECONDS:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _refuse_file(shown: Path, target: Path, force: bool) -> None:
    if target.is_dir():
        raise OutputError(f"{shown} is a directory, expected the name of a file to write")
    if target.exists() and not target.is_file():
        raise OutputError(f"{shown} is a device or a pipe, expected the name of a regular file to write")
    if target.exists() and not force:
        raise OutputError(f"{shown} exists already; choose another name or replace it with --force")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {shown}: there is no directory {shown.parent}; create it first")


def _swap_directory(new: Path, target: Path, force: bool, shown: Path) -> None:
    old = _temporary(target, OLD)
    try:
        with contextlib.suppress(FileNotFoundError):
            if force:
                target.replace(old)
        new.replace(target)  # also over an empty directory
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.exists():
            raise OutputError(f"{shown} was written by another run meanwhile; that one is kept") from error
        raise
    finally:
        if old.exists():
            shutil.rmtree(old, ignore_errors=True) if target.exists() else old.replace(target)


@contextmanager
def _output_errors(shown: Path) -> Iterator[None]:
    """Turn the operating system's errors about writing into `OutputError`; all others pass."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MimiExportError) or error.errno not in _OUTPUT_ERRNOS:
            raise
        raise OutputError(f"cannot write {shown}: {os.strerror(error.errno)}") from error
