"""The measured side of a contender in a process of its own: a tiny line protocol on stdin and stdout.

A program under test loads, prints one JSON line, and then answers each line that it reads with one JSON line:

    (start)          {"ready": true, "name", "version", "commands", "threads", "frames_per_call", "note",
                      "import_seconds", "load_seconds", "rss_bytes"}
    encode N         {"command": "encode", "frames": N, "age_frames": A, "ms": [one per call], "cpu_ms": [the same in
                      processor time], "rss_bytes"}
    decode N         the same; A is the stream's age in frames when the first call began
    seek SECONDS     {"command": "seek", "age_frames": A, "rss_bytes"}; both streams reach that age, untimed
    quit             the process ends with status 0; so does the end of input

What a contender cannot do is not in its `commands`, and asking for it is answered by {"error": text}. stdout belongs
to the protocol alone: whatever a library prints there goes to stderr. Audio is generated speech, repeated every
`LOOP_SECONDS`; codes are uniformly random, which costs a decoder the same as real ones.

Everything here needs numpy and the standard library only, so that it runs where nothing of ours is installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mimi_export.media.signals import SAMPLING_RATE, speech_like

FRAME_SIZE = 1920  # samples; the peers have Kyutai's geometry built in
CODEBOOK_SIZE = 2048
LOOP_SECONDS = 16.0
SEEK_FRAMES = 25  # frames a call while seeking: 50 tokens, well inside every peer's window

Audio = NDArray[np.float32]
Codes = NDArray[np.int64]


class Peer(Protocol):
    """One way to run Mimi; `encode` and `decode` continue one stream each, `reset` begins both anew.

    Attributes:
        name: what the benchmark calls it.
        version: of the program under test.
        commands: which of `encode`, `decode` and `seek` it can do.
        streaming: whether a call takes one frame of a stream. If not, `encode N` is one call on a clip of N frames.
        note: what a reader of the table must know.
    """

    name: str
    version: str
    commands: tuple[str, ...]
    streaming: bool
    note: str

    def prepare_audio(self, audio: Audio) -> Any:
        """Audio `[1, 1, samples]` in the type that the program takes; not timed."""

    def prepare_codes(self, codes: Codes) -> Any:
        """Codes `[1, K, frames]` in the type that the program takes; not timed."""

    def encode(self, audio: Any) -> None:
        """One timed call of the encoder."""

    def decode(self, codes: Any) -> None:
        """One timed call of the decoder."""

    def reset(self) -> None:
        """Begin a new stream in both directions."""


def limit_threads(threads: int) -> None:
    """Tell the libraries that read their thread count from the environment; to be called before importing them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)


def claim_stdout() -> IO[str]:
    """A stream to the process's stdout; from now on everything else that is written there goes to stderr."""
    sys.stdout.flush()
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return protocol


def rss_bytes() -> int:
    """Resident memory of this process; where the system does not tell the present one, the highest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Worker:
    """Answers the commands of the protocol for one peer.

    Args:
        peer: the program under test, loaded.
        num_codebooks: codes a frame.
    """

    def __init__(self, peer: Peer, num_codebooks: int) -> None:
        self._peer = peer
        self._audio = speech_like(LOOP_SECONDS, seed=0, sampling_rate=SAMPLING_RATE)
        frames = len(self._audio) // FRAME_SIZE
        self._codes = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (1, num_codebooks, frames))
        self._ages = {"encode": 0, "decode": 0}

    def answer(self, line: str) -> dict[str, Any]:
        """The reply to one line."""
        command, _, argument = line.strip().partition(" ")
        if command not in self._peer.commands:
            return {"error": f"{self._peer.name} cannot {command or 'do nothing'}: {self._peer.note}"}
        try:
            amount = float(argument) if command == "seek" else int(argument)
        except ValueError:
            return {"error": f"{command} {argument!r}: expected a number"}
        if amount < (0 if command == "seek" else 1):
            return {"error": f"{command} {argument}: expected a positive number"}
        reply = self._seek(float(amount)) if command == "seek" else self._measure(command, int(amount))
        return {"command": command, **reply, "rss_bytes": rss_bytes()}

    def _measure(self, direction: str, frames: int) -> dict[str, Any]:
        """Run `frames` frames, a frame a call for a stream and in one call otherwise, and time each call."""
        age = self._ages[direction] if self._peer.streaming else 0
        size = 1 if self._peer.streaming else frames
        milliseconds, processor = [], []
        for start in range(age, age + frames, size):
            run, data = self._call(direction, start, size)
            used, began = time.process_time_ns(), time.perf_counter_ns()
            run(data)
            milliseconds.append((time.perf_counter_ns() - began) / 1e6)
            processor.append((time.process_time_ns() - used) / 1e6)
        self._ages[direction] = age + frames
        return {"frames": frames, "age_frames": age, "ms": milliseconds, "cpu_ms": processor}

    def _seek(self, seconds: float) -> dict[str, Any]:
        """Bring both streams to `seconds`, from the start if one is older."""
        target = round(seconds * SAMPLING_RATE / FRAME_SIZE)
        if max(self._ages.values()) > target:
            self._peer.reset()
            self._ages = dict.fromkeys(self._ages, 0)
        for direction in (name for name in self._ages if name in self._peer.commands):
            while (age := self._ages[direction]) < target:
                size = min(SEEK_FRAMES, target - age)
                run, data = self._call(direction, age, size)
                run(data)
                self._ages[direction] = age + size
        return {"age_frames": target}

    def _call(self, direction: str, start: int, frames: int) -> tuple[Any, Any]:
        """The peer's method and its input for `frames` frames from `start` of the endless signal."""
        index = np.arange(start, start + frames) % self._codes.shape[2]
        if direction == "encode":
            blocks = self._audio.reshape(-1, FRAME_SIZE)[index]
            return self._peer.encode, self._peer.prepare_audio(blocks.reshape(1, 1, -1))
        return self._peer.decode, self._peer.prepare_codes(np.ascontiguousarray(self._codes[:, :, index]))


def serve(peer: Peer, num_codebooks: int, facts: dict[str, Any], requests: IO[str], replies: IO[str]) -> None:
    """Announce that the peer is ready, with `facts`, and answer `requests` until they end or say `quit`."""
    worker = Worker(peer, num_codebooks)

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    send(
        {
            "ready": True,
            "name": peer.name,
            "version": peer.version,
            "commands": list(peer.commands),
            "frames_per_call": 1 if peer.streaming else None,
            "note": peer.note,
            **facts,
            "rss_bytes": rss_bytes(),
        }
    )
    for line in requests:
        if line.strip() == "quit":
            return
        send(worker.answer(line))
