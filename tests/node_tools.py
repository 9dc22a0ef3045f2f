"""Node for tests: skips with a reason where it, or what `make node-deps` installs, is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "tests" / "node"
OLDEST = 18


def need_node(*packages: str, folder: Path = FOLDER) -> None:
    """Skip the calling test unless Node and these packages are installed below `folder`."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < OLDEST:
        pytest.skip(f"Node {version} is too old, expected {OLDEST} or later")
    for package in packages:
        if not (folder / "node_modules" / package / "package.json").is_file():
            where = folder.relative_to(REPOSITORY)
            pytest.skip(f"{package} is not installed below {where}: run `make node-deps`")


def run_node(*arguments: object, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run Node; a program that fails fails the test with what it said."""
    run = subprocess.run(["node", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run


def read_output(prefix: Path) -> tuple[np.ndarray, np.ndarray]:
    """The codes `[1, K, T]` and the audio `[n]` that the programs below `tests/node` write."""
    codes = json.loads(prefix.with_name(prefix.name + ".codes.json").read_text())
    audio = np.fromfile(prefix.with_name(prefix.name + ".audio.f32"), np.float32)
    return np.array(codes["data"], np.int64).reshape(codes["dims"]), audio
