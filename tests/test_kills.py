"""Killed outright at random moments, a command leaves the whole output or none, and running it again completes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hub_server import HubServer
from publishing import REPO, publication

from mimi_export.contract.directory import load_artifact
from mimi_export.media.codes import read_codes
from mimi_export.media.signals import speech_like

pytestmark = [pytest.mark.slow, pytest.mark.export, pytest.mark.timeout(3600)]

KILLS = 20
DAYS = 2 * 86_400.0
PRELOADED = ("mimi_export.export.build", "mimi_export.parity.run", "mimi_export.hub.upload", "mimi_export.runtime")


def run(arguments: list[str], folder: str) -> None:
    """In a process of its own, which has imported everything and nothing else."""
    from mimi_export.cli import main

    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    raise SystemExit(main(arguments))


@pytest.fixture(scope="module")
def hub():
    """Its address must be known before the processes import its client."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def processes(hub):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def started(processes, folder: Path, arguments: list[str]):
    process = processes.Process(target=run, args=(arguments, str(folder)))
    process.start()
    return process


def killed(processes, folder: Path, arguments: list[str], check, clear) -> None:
    """Measure a whole run, then kill it `KILLS` times at random moments of that time; `check` after each."""

    def start():
        return started(processes, folder, arguments)

    begin = time.monotonic()
    whole = start()
    whole.join()
    seconds = time.monotonic() - begin
    assert whole.exitcode == 0, (folder / "stderr.txt").read_text()
    check()
    rng = np.random.default_rng(0)
    for _ in range(KILLS):
        clear()
        process = start()
        process.join(rng.uniform(0, seconds))
        process.kill()
        process.join()
        check()
    clear()  # the last run may have been quicker than its kill
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - DAYS,) * 2, follow_symlinks=False)
    again = start()
    again.join()
    assert again.exitcode == 0, (folder / "stderr.txt").read_text()
    check(whole=True)
    hidden = [path.name for path in folder.rglob(".*") if path.name != ".build"]
    assert hidden == []


def variant_check(path: Path):
    def check(whole: bool = False) -> None:
        if whole or path.exists():
            load_artifact(path, verify_hashes=True)
        assert all(entry.name.startswith(".") or entry == path or entry.suffix for entry in path.parent.iterdir())

    return check


def removed(path: Path):
    return lambda: shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_encode(processes, tiny_variant, tmp_path):
    soundfile.write(tmp_path / "in.flac", np.tile(speech_like(10), 60), 24000)
    target = tmp_path / "out.safetensors"

    def check(whole=False):
        if whole or target.exists():
            assert read_codes(target).codes.shape == (1, 8, 7500)

    arguments = ["encode", "in.flac", target.name, "--variant", str(tiny_variant(8))]
    killed(processes, tmp_path, arguments, check, removed(target))


def test_convert(processes, tiny_variant, tmp_path):
    target = tmp_path / "out"
    arguments = ["convert", "int8", str(tiny_variant(8)), "out"]
    killed(processes, tmp_path, arguments, variant_check(target), removed(target))


def test_export(processes, tmp_path):
    target = tmp_path / "out"
    arguments = ["export", "--model", "synthetic:tiny", "--output-dir", "out"]
    killed(processes, tmp_path, arguments, variant_check(target), removed(target))


def test_build(processes, tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\n[export]\nmodel = "synthetic:tiny"\nnum_codebooks = 8\n')
    target = tmp_path / "built" / "a"
    arguments = ["build", "--configs", ".", "--no-check", "--output-dir", "built"]
    killed(processes, tmp_path, arguments, variant_check(target), removed(target))


def test_upload(processes, hub, tiny_checkpoint, tiny_variant, tmp_path):
    published = publication(tmp_path, tiny_checkpoint, {"streaming-8cb": tiny_variant(8)})
    wanted = {f"streaming-8cb/{path.name}" for path in published.directories[0].iterdir()}

    def check(whole=False):
        there = REPO in hub.repos and hub.repos[REPO].find("main") is not None
        files = set(hub.repos[REPO].files("main")) if there else set()
        assert wanted <= files or not (wanted & files or whole), "half of a commit"

    arguments = ["upload", "streaming-8cb", "--repo-id", REPO, "--yes"]
    killed(processes, tmp_path, arguments, check, hub.repos.clear)


@pytest.mark.parametrize("force", [False, True])
def test_two_commands_to_one_target(processes, tiny_variant, tmp_path, force):
    """Both begin at once: the later is refused unless it may replace, and what is there is whole."""
    soundfile.write(tmp_path / "in.flac", np.tile(speech_like(10), 6), 24000)
    variant = str(tiny_variant(8))
    more = ["--force"] * force
    for arguments in (["encode", "in.flac", "out.npz", "--variant", variant], ["convert", "int8", variant, "out"]):
        both = [started(processes, tmp_path, [*arguments, *more]) for _ in range(2)]
        for process in both:
            process.join()
        said = (tmp_path / "stderr.txt").read_text()
        assert sorted(process.exitcode for process in both) == ([0, 0] if force else [0, 8]), said
        assert force or said.count("error: ") == said.count("exists already") + said.count("another run") > 0
    assert read_codes(tmp_path / "out.npz").codes.shape == (1, 8, 750)
    load_artifact(tmp_path / "out", verify_hashes=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.flac", "out", "out.npz", "stderr.txt"]
