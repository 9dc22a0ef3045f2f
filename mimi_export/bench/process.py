"""The driver's side of a contender: start a program under test, ask it for rounds of work, stop it.

The program is any that speaks the line protocol of `worker`. One process stays loaded for a whole benchmark, so
that contenders can be measured in turns (A, B, C, A, B, C, …) and a slow moment of the machine hits them all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import mimi_export
from mimi_export.bench.huge_pages import huge_page_environment
from mimi_export.errors import CheckpointError, MimiExportError, MissingPackageError

logger = logging.getLogger(__name__)

READY_SECONDS = 300.0
ANSWER_SECONDS = 1800.0  # ten minutes of audio at half of real time, and some
_QUIT_SECONDS = 10.0
_STDERR_BYTES = 20_000
_ERRORS: dict[int, type[MimiExportError]] = {error.exit_code: error for error in (CheckpointError, MissingPackageError)}


@dataclass(frozen=True)
class Ready:
    """What a contender says of itself once it has loaded. Times in seconds, memory in bytes."""

    name: str
    version: str
    commands: tuple[str, ...]
    threads: int
    streaming: bool
    note: str
    import_seconds: float
    load_seconds: float
    rss_bytes: int


@dataclass(frozen=True)
class Round:
    """One measured round.

    `milliseconds` holds one time for each call. A call of a streaming contender is one frame; a batch contender does
    all `frames` in its one call.
    """

    frames: int
    age_frames: int
    milliseconds: tuple[float, ...]
    rss_bytes: int

    @property
    def milliseconds_per_frame(self) -> float:
        """Mean time of a frame."""
        return sum(self.milliseconds) / self.frames


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
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with contextlib.ExitStack() as resources:
            self._stderr = resources.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    env={**os.environ, **(environment or {}), **(huge_page_environment() if huge_pages else {})},
                    encoding="utf-8",
                )
            except OSError as error:
                raise MimiExportError(f"cannot start {command[0]}: {error.strerror}; give a working program") from error
            resources.callback(self._stop)
            threading.Thread(target=self._read, daemon=True).start()
            self.ready = _parse_ready(self._answer("starting", ready_seconds))
            self._resources = resources.pop_all()

    @classmethod
    def peer(
        cls,
        name: str,
        weights: Path,
        python: str | os.PathLike[str] = sys.executable,
        threads: int = 1,
        num_codebooks: int = 8,
        ready_seconds: float = READY_SECONDS,
        huge_pages: bool = False,
    ) -> ContenderProcess:
        """Start the peer called `name` (see `peers`) under another environment's `python`.

        That environment needs the peer and numpy. It gets this package as a copy of the sources on its path and not
        through our `site-packages`, which would put our torch before its own.
        """
        with contextlib.ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="mimi-export-peer-")))
            package = Path(mimi_export.__file__).parent
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
            command = [os.fspath(python), "-m", f"{package.name}.bench.peers", name]
            command += ["--weights", os.fspath(Path(weights).resolve())]
            command += ["--threads", str(threads), "--codebooks", str(num_codebooks)]
            environment = {"PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1"}
            # Some libraries count their threads when the process starts, before its first line can say a word.
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
            contender = cls(name, command, environment, ready_seconds, huge_pages)
            contender._resources.push(resources.pop_all())
        return contender

    def encode(self, frames: int) -> Round:
        """Encode the next `frames` frames of the stream, one at a time (in one call if the contender is batch)."""
        return self._round(f"encode {frames}")

    def decode(self, frames: int) -> Round:
        """Decode the next `frames` frames of the stream, as `encode`."""
        return self._round(f"decode {frames}")

    def seek(self, seconds: float) -> None:
        """Bring the streams in both directions to an age of `seconds`; not measured. 0 begins new ones."""
        self.request(f"seek {seconds}")

    def request(self, line: str, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Send one line of the protocol and return the reply.

        Raises:
            MimiExportError: the contender refuses, ends, or does not answer within `timeout` seconds.
        """
        if self._process.stdin is None or self._process.stdin.closed:
            raise MimiExportError(f"{self._name} has been closed; start it again to ask for {line!r}")
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:  # it has ended already: why is in its stderr
            raise self._ended(f"before {line!r}") from error
        return self._answer(f"answering {line!r}", timeout)

    def close(self) -> None:
        """End the process, by force if it does not end by itself; closing twice is harmless."""
        self._resources.close()

    def __enter__(self) -> ContenderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _round(self, line: str) -> Round:
        reply = self.request(line)
        return Round(reply["frames"], reply["age_frames"], tuple(reply["ms"]), reply["rss_bytes"])

    def _stop(self) -> None:
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()  # the end of input means `quit`
            except OSError:
                logger.debug("%s had ended before it was closed", self._name)
        try:
            self._process.wait(_QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        """Carry replies into the queue, where waiting for one can time out; `None` marks the end."""
        stdout = self._process.stdout
        if stdout is not None:
            with stdout:
                for line in stdout:
                    self._replies.put(line)
        self._replies.put(None)

    def _answer(self, doing: str, timeout: float) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            self._process.kill()
            raise MimiExportError(f"{self._name} gave no answer in {timeout:g} s while {doing}; stopped it") from None
        if line is None:
            self._replies.put(None)  # it stays ended for whoever asks next
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


def _parse_ready(reply: Mapping[str, Any]) -> Ready:
    copied = ("name", "version", "threads", "note", "import_seconds", "load_seconds", "rss_bytes")
    return Ready(
        commands=tuple(reply["commands"]),
        streaming=reply["frames_per_call"] == 1,
        **{name: reply[name] for name in copied},
    )
