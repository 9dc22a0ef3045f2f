"""A corpus that is killed outright at random moments, again and again, ends as one that was left in peace."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from conftest import REPOSITORY
from helpers import show

from mimi_export.media.signals import speech_like

pytestmark = [pytest.mark.slow, pytest.mark.export, pytest.mark.timeout(3600)]

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # so that no other token is looked for
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), **TOKEN}


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, seconds in enumerate(rng.uniform(0.1, 60, 120)):
        soundfile.write(folder / f"{index:03d}.wav", speech_like(seconds, seed=index), 24000)
    (folder / "bad.wav").write_bytes(b"no sound")
    return folder


def start(variant, recordings, output, *more):
    command = [sys.executable, "-m", "mimi_export", "tokenize", recordings, "--output", output, "--variant", variant]
    command += ["--rows", "4", *more]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def journal(folder: Path) -> int:
    """Bytes of the rows that are done and in no file yet, with either engine."""
    return sum(path.stat().st_size for kept in (".rows-*", ".ray/**/*.parquet") for path in folder.glob(kept))


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def workers_of(root: int) -> list[int]:
    """The processes that encode."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                if "spawn_main" in command or "MapWorker" in command:
                    found.append(child.pid)
    return found


@pytest.fixture
def head(tmp_path):
    """A cluster of one node with three logical cores; its address and process."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    program += ["--port", str(port), "--num-cpus", "3", "--include-dashboard", "false"]
    program += ["--object-store-memory", str(100 << 20)]
    process = subprocess.Popen(
        program, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(1)
        time.sleep(10)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def test_killed_and_resumed_equals_peace(tiny_variant, recordings, tmp_path, capsys):
    killed(24, ("--workers", "2"), None, tiny_variant(8, "ring", 1), recordings, tmp_path, capsys)


def test_ray_killed_and_resumed_equals_peace(head, tiny_variant, recordings, tmp_path, capsys):
    address, root = head
    more = ("--engine", "ray", "--workers", "2", "--address", address)
    killed(20, more, root, tiny_variant(8, "ring", 1), recordings, tmp_path, capsys)


def killed(kills, more, root, variant, recordings, tmp_path, capsys):
    """Leave a run in peace; kill others, most of them by a worker, too; let the last one end.

    Local runs are killed soon after they have done a row. Ray hands rows over many at a time, so its runs are killed
    at random moments of the time that the one in peace took.
    """
    begin = time.monotonic()
    peace = start(variant, recordings, tmp_path / "peace", *more)
    output, _ = peace.communicate()
    assert peace.returncode == 6, output
    seconds = time.monotonic() - begin
    rng, counts, rows = np.random.default_rng(1), {"driver": 0, "worker": 0, "both": 0}, []
    target = tmp_path / "killed"
    while sum(counts.values()) < kills:
        process = start(variant, recordings, target, *more)
        before = journal(target)
        while root is None and process.poll() is None and journal(target) <= before:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 1.5) if root is None else rng.uniform(0.5, 1.2) * seconds)
        if process.poll() is not None:  # it has ended before it could be killed: begin anew
            rows.append("whole")
            for path in target.glob("[!_]*"):
                path.unlink()
            continue
        kind = rng.choice(list(counts))
        counts[str(kind)] += 1
        workers = workers_of(root or process.pid)
        if kind != "driver" and workers:
            kill(workers[-1])
            time.sleep(rng.uniform(0, 2))
        kill(process.pid)
        process.communicate()
        rows.append(journal(target))
    last = start(variant, recordings, target, *more)
    output, _ = last.communicate()
    assert last.returncode == 6, output
    assert content(target) == content(tmp_path / "peace")
    again = start(variant, recordings, target, *more)
    output, _ = again.communicate()
    assert "0 done, 121 before, 1 failed, of 121" in output
    assert not list(target.glob(".rows-*"))
    assert root or len(set(rows)) > kills / 2, "most runs have done something before they were killed"
    show(f"kills: {counts}; bytes in the journal after each: {rows}", capsys)
