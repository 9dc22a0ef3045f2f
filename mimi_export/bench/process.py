"""The driver's side of a contender: start a program under test, ask it for rounds of work, stop it.

The program is any that speaks the line protocol of `worker`. One process stays loaded for a whole benchmark, so that
contenders can be measured in turns and a slow moment of the machine hits them all.

With huge pages its heap, which is where onnxruntime and PyTorch keep weights, lies in pages of 2 MiB. A frame reads all
weights once, and in pages of 4 KiB the processor looks up forty thousand addresses for it. glibc asks the kernel for
them when a process is started with `GLIBC_TUNABLES` as here; the kernel has to allow it in `SWITCH`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mimi_export.errors import CheckpointError, ConfigError, MimiExportError, MissingPackageError

logger = logging.getLogger(__name__)

READY_SECONDS = 300.0
ANSWER_SECONDS = 1800.0  # ten minutes of audio at half of real time, and some
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_QUIT_SECONDS = 10.0
_STDERR_BYTES = 20_000
_ERRORS: dict[int, type[MimiExportError]] = {error.exit_code: error for error in (CheckpointError, MissingPackageError)}


def check_huge_pages() -> None:
    """Raise `ConfigError` where a heap cannot have huge pages."""
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        raise ConfigError(f"huge pages need glibc 2.35 or later, this is {library or platform.system()} {version}")
    try:
        chosen = SWITCH.read_text("ascii")
    except OSError as error:
        raise ConfigError(f"this kernel has no huge pages: {SWITCH}: {error.strerror}") from error
    if "[never]" in chosen:
        raise ConfigError(f"huge pages are switched off here; as root: echo madvise > {SWITCH}")


@dataclass(frozen=True)
class Ready:
    """What a contender says of itself once it has loaded, see `worker`."""

    name: str
    version: str
    ways: tuple[str, ...]
    frames_per_call: int
    note: str
    import_seconds: float
    load_seconds: float


class ContenderProcess:
    """A running contender; a context manager that ends it.

    Args:
        name: what messages call it.
        command: the program and its arguments.
        environment: variables added to this process's own.
        ready_seconds: how long it may take to load.
        huge_pages: ask glibc to put its heap into huge pages.

    Raises:
        MissingPackageError, CheckpointError: it says that it is not installed, or that it has no weights.
        MimiExportError: it cannot be started, or ends or falls silent before it is ready.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        ready_seconds: float = READY_SECONDS,
        huge_pages: bool = False,
    ) -> None:
        self._name = name
        variables = {**os.environ, **(environment or {})}
        if huge_pages:
            variables[_VARIABLE] = ":".join(filter(None, (variables.get(_VARIABLE), _TUNABLE)))
        with contextlib.ExitStack() as resources:
            self._stderr = resources.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    env=variables,
                    encoding="utf-8",
                )
            except OSError as error:
                raise MimiExportError(f"cannot start {command[0]}: {error.strerror}; give a working program") from error
            resources.callback(self._stop)
            reply = self._answer("starting", ready_seconds)
            self.ready = Ready(**{field: reply[field] for field in Ready.__dataclass_fields__})
            self._resources = resources.pop_all()

    def measure(self, ways: Sequence[str], age_seconds: float, batch: int, calls: int) -> dict[str, Any]:
        """Ask for one round; the reply of `worker`.

        Raises:
            MimiExportError: the contender refuses, ends, or does not answer within `ANSWER_SECONDS`.
        """
        wish = {"ways": list(ways), "age_seconds": age_seconds, "batch": batch, "calls": calls}
        doing = f"running {', '.join(ways)} at {age_seconds:g} s with batch {batch}"
        try:
            print(json.dumps(wish), file=self._process.stdin, flush=True)
        except OSError as error:  # it has ended already: why is in its stderr
            raise self._ended(f"before {doing}") from error
        return self._answer(doing, ANSWER_SECONDS)

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process now; 0 once it has ended."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def _stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        try:
            self._process.communicate(timeout=_QUIT_SECONDS)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _answer(self, doing: str, timeout: float) -> dict[str, Any]:
        began, timer = time.monotonic(), threading.Timer(timeout, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            timer.cancel()
        if not line and time.monotonic() - began >= timeout:
            raise MimiExportError(f"{self._name} gave no answer in {timeout:g} s while {doing}; stopped it")
        if not line:
            raise self._ended(f"while {doing}")
        try:
            reply: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise MimiExportError(f"{self._name} wrote {line[:80]!r} while {doing}, expected a JSON line") from None
        if "error" in reply:
            raise MimiExportError(reply["error"])
        return reply

    def _ended(self, when: str) -> MimiExportError:
        """The error for a process that is gone, with the line of its stderr that tells most."""
        status = self._process.wait()
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines() or ["it wrote nothing"]
        logger.debug("stderr of %s:\n%s", self._name, "\n".join(lines))
        # A native library's backtrace follows its message; a Python one precedes it.
        telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception|panicked)\b", line)] or lines
        kind = _ERRORS.get(status, MimiExportError)
        return kind(f"{self._name} ended with status {status} {when}: {telling[-1].strip()}")
