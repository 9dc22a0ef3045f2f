"""Shared fixtures: tiny and full-size checkpoints and the variant directories exported from them, each made once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

VariantFactory = Callable[..., Path]

# Modules in the order of the time that they take, from half a minute up: begun last, one of them would run alone.
LONGEST = (
    "test_parity", "test_exactness", "test_batch", "test_export", "test_convert", "test_bench", "test_node",
    "test_runtime", "test_mutations", "test_contract_client", "test_fixed_batch", "test_cli", "test_upload",
    "test_web",
)  # fmt: skip
EXPORTING = {"tiny_variant", "full_variant", "public", "codec", "ring"}  # fixtures that trace graphs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what exports graphs, and begin with the longest modules, so that two workers end together."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        needed = {*getattr(item, "fixturenames", ()), *(value for value in values if isinstance(value, str))}
        if EXPORTING & needed:
            item.add_marker(pytest.mark.export)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores: torch's default threads and onnxruntime's would get in each other's way."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def cli(capsys):
    """`cli("encode", …)` runs a command here and gives exit code, stdout and stderr."""
    from mimi_export.cli import main

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint():
    from mimi_export.model.checkpoint import load_checkpoint

    return load_checkpoint("synthetic:tiny")


@pytest.fixture(scope="session")
def full_checkpoint():
    from mimi_export.model.checkpoint import load_checkpoint

    return load_checkpoint("synthetic")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder of this test run, the same one for all workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _factory(checkpoint, root: Path) -> VariantFactory:
    from mimi_export.contract.spec import Shape
    from mimi_export.export.variant import export_variant

    root.mkdir(exist_ok=True)

    def make(num_codebooks: int = 8, *more: Any, **named: Any) -> Path:
        shape = Shape(num_codebooks, *more, **named)
        path = root / "-".join(map(str, dataclasses.astuple(shape)))
        with FileLock(f"{path}.lock"):  # another worker may be making it
            if not path.exists():
                export_variant(checkpoint, path, shape)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_variant(tiny_checkpoint, shared_folder) -> VariantFactory:
    """`tiny_variant(8, "ring", 2, rows=3)` is the directory of that `Shape`; never write into it."""
    return _factory(tiny_checkpoint, shared_folder / "tiny")


@pytest.fixture(scope="session")
def full_variant(full_checkpoint, shared_folder) -> VariantFactory:
    """The same from the full-size checkpoint; for tests marked slow."""
    return _factory(full_checkpoint, shared_folder / "full")


@pytest.fixture(scope="session")
def jfk() -> np.ndarray:
    """Real speech, 24 kHz mono float32, 11 s; the test is skipped where the recording is not there."""
    path = SHARED / "audio" / "jfk.flac"
    if not path.exists():
        pytest.skip(f"no recording at {os.path.relpath(path, REPOSITORY)}")
    from mimi_export.media.audio import read_audio

    return read_audio(path, 24000)
