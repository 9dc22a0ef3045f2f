"""Every error a user can cause, each with the exit code that the command line gives it.

A class is a `MimiExportError` and also the builtin a library user would expect to catch. A message says what
was got, what was wanted and what to do about it, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MimiExportError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 2


class ConfigError(MimiExportError, ValueError):
    """A model geometry or a variant configuration that cannot be built."""

    exit_code = 3


class CheckpointError(MimiExportError, OSError):
    """Model weights that cannot be found, downloaded or read."""

    exit_code = 4


class ArtifactError(MimiExportError, ValueError):
    """A variant directory that is missing, incomplete, changed or of another format."""

    exit_code = 5


class GraphError(ArtifactError):
    """An ONNX graph that does not load or does not have the inputs and outputs it should."""


class AudioError(MimiExportError, ValueError):
    """Audio that cannot be read, written or encoded."""

    exit_code = 6


class CodesError(MimiExportError, ValueError):
    """Codes of a wrong shape, type, range or file format."""

    exit_code = 7


class StreamError(MimiExportError, RuntimeError):
    """A stream that has ended, or a pool that has no free row."""


class OutputError(MimiExportError, OSError):
    """An output that cannot be written, or that exists and may not be replaced."""

    exit_code = 8


class ParityError(MimiExportError, ArithmeticError):
    """A graph that does not reproduce its reference."""

    exit_code = 1


class MeasurementError(MimiExportError, RuntimeError):
    """Something that parity should have measured could not be measured, or was not."""

    exit_code = 10


class MissingPackageError(MimiExportError, ImportError):
    """An optional package that a command needs is not installed."""

    exit_code = 9


class HubError(MimiExportError, OSError):
    """The Hugging Face Hub refuses, cannot be reached, or gives back something else than was sent."""

    exit_code = 11


class TransientError(HubError):
    """A failure on the way to the Hub that may pass: trying again is worth while."""


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of `names` in alphabetical order, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Import optional packages inside; one that is missing raises `MissingPackageError` with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "mimi_export"):
            raise
        raise MissingPackageError(
            f"{what} needs the {extra} extra ({package} is not installed): pip install 'mimi-export[{extra}]'"
        ) from error
