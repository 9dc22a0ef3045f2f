"""Exit codes, and the one place where exceptions become a line on stderr and such a code."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mimi_export.errors import MimiExportError, OutputError
from mimi_export.errors import needs_extra as needs_extra

DEFECT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE


def exit_codes() -> dict[int, str]:
    """Every exit code and a word or two for it, computed from the error classes."""
    codes = {0: "done", MimiExportError.exit_code: "wrong use"}
    for kind in _subclasses(MimiExportError):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Error"))
        codes.setdefault(kind.exit_code, words.lower())
    codes |= {DEFECT: "defect of this program (see -v)", INTERRUPTED: "interrupted", BROKEN_PIPE: "closed pipe"}
    return dict(sorted(codes.items()))


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn what ends a command into `typer.Exit`, with one line on stderr; with `-v` the traceback comes before it.

    Errors of the command line itself are typer's and pass through.
    """
    try:
        yield
        sys.stdout.flush()  # a closed pipe shows here and not at the interpreter's end
    except MimiExportError as error:
        raise _exit(str(error), error.exit_code) from error
    except KeyboardInterrupt as error:
        raise _exit("interrupted; no partial output is left", INTERRUPTED) from error
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody listens to the rest either
        raise typer.Exit(BROKEN_PIPE) from error
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        raise _exit(f"{error.strerror or error}{name}", OutputError.exit_code) from error
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except Exception as error:
        if _is_usage_error(error):
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise _exit(f"this is a defect of mimi-export ({type(error).__name__}: {reason}); see -v", DEFECT) from error


def _exit(message: str, code: int) -> typer.Exit:
    """Print the traceback where it was asked for, then the message on one line."""
    if logging.getLogger("mimi_export").isEnabledFor(logging.DEBUG):
        traceback.print_exc(file=sys.stderr)
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)  # noqa: T201
    return typer.Exit(code)


def _is_usage_error(error: Exception) -> bool:
    """Whether typer itself shows this: its releases derive usage errors from click's class or from a copy of it."""
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


def _subclasses(kind: type[MimiExportError]) -> Iterator[type[MimiExportError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
