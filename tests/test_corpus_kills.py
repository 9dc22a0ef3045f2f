"""A corpus that is killed outright at random moments, again and again, ends as one that was left in peace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY
from helpers import show

from mimi_export.media.signals import speech_like

pytestmark = [pytest.mark.slow, pytest.mark.export, pytest.mark.timeout(3600)]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, seconds in enumerate(rng.uniform(0.1, 12, 120)):
        soundfile.write(folder / f"{index:03d}.wav", speech_like(seconds, seed=index), 24000)
    (folder / "bad.wav").write_bytes(b"no sound")
    return folder


def start(variant, recordings, output, *more):
    command = [sys.executable, "-m", "mimi_export", "tokenize", recordings, "--output", output, "--variant", variant]
    command += ["--rows", "4", *more]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def workers_of(process) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("engine", "kills"), [("local", 24), ("ray", 5)])
def test_killed_and_resumed_equals_peace(engine, kills, tiny_variant, recordings, tmp_path, capsys):
    if engine == "ray":
        pytest.importorskip("ray")
    variant, more = tiny_variant(8, "ring", 1), ("--engine", engine, "--workers", "2")
    begin = time.monotonic()
    peace = start(variant, recordings, tmp_path / "peace", "--workers", "2")
    output, _ = peace.communicate()
    assert peace.returncode == 6, output
    seconds = time.monotonic() - begin
    rng, done, counts = np.random.default_rng(1), 0, {"driver": 0, "worker": 0}
    target = tmp_path / "killed"
    while done < kills:
        process = start(variant, recordings, target, *more)
        try:
            process.wait(rng.uniform(0.2, 1.0) * seconds)
            for path in target.glob("codes-*"):  # it has ended before it could be killed: begin a last part anew
                path.unlink()
            (target / "errors.parquet").unlink(missing_ok=True)
            continue
        except subprocess.TimeoutExpired:
            pass
        children = workers_of(process)
        if engine == "local" and children and rng.random() < 0.5:
            kill(children[-1])
            counts["worker"] += 1
            time.sleep(rng.uniform(0, 1))
        else:
            counts["driver"] += 1
        kill(process.pid)
        process.wait()
        for child in children if engine == "ray" else ():
            kill(child)
        done += 1
    last = start(variant, recordings, target, *more)
    output, _ = last.communicate()
    assert last.returncode == 6, output
    assert content(target) == content(tmp_path / "peace")
    again = start(variant, recordings, target, *more)
    output, _ = again.communicate()
    assert "0 done, 121 before, 1 failed, of 121" in output
    show(
        f"{engine}: {done} kills, {counts}; last run: {[line for line in output.splitlines() if 'before' in line]}",
        capsys,
    )
