"""Shared fixtures: tiny and full-size checkpoints and the variant directories exported from them, each made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

VariantFactory = Callable[..., Path]


EXPORTING = {"tiny_variant", "full_variant", "public", "codec", "ring"}  # fixtures that trace graphs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what exports graphs; with `-n 2 --dist loadgroup` a module stays on one worker, full size on another."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        needed = {*getattr(item, "fixturenames", ()), *(value for value in values if isinstance(value, str))}
        if EXPORTING & needed:
            item.add_marker(pytest.mark.export)
        item.add_marker(pytest.mark.xdist_group("full-size" if "full_variant" in needed else item.path.name))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores: torch's default threads and onnxruntime's would get in each other's way."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint():
    from mimi_export.checkpoint import load_checkpoint

    return load_checkpoint("synthetic:tiny")


@pytest.fixture(scope="session")
def full_checkpoint():
    from mimi_export.checkpoint import load_checkpoint

    return load_checkpoint("synthetic")


def _factory(checkpoint, root: Path) -> VariantFactory:
    from mimi_export.export import export_variant

    def make(
        num_codebooks: int = 8, layout: str = "window", frames_per_call: int | None = None, batch: int | None = None
    ) -> Path:
        path = root / f"{layout}-{num_codebooks}cb-{frames_per_call or 'any'}{f'-batch{batch}' if batch else ''}"
        if not path.exists():
            sizes = {"layout": layout, "frames_per_call": frames_per_call, "batch": batch}
            export_variant(checkpoint, path, num_codebooks, **sizes)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_variant(tiny_checkpoint, tmp_path_factory) -> VariantFactory:
    """`tiny_variant(num_codebooks=8, layout="window", frames_per_call=None, batch=None)`; never write into it."""
    return _factory(tiny_checkpoint, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def full_variant(full_checkpoint, tmp_path_factory) -> VariantFactory:
    """The same from the full-size checkpoint; for tests marked slow."""
    return _factory(full_checkpoint, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="session")
def jfk() -> np.ndarray:
    """Real speech, 24 kHz mono float32, 11 s; the test is skipped where the recording is not there."""
    path = SHARED / "audio" / "jfk.flac"
    if not path.exists():
        pytest.skip(f"no recording at {os.path.relpath(path, REPOSITORY)}")
    from mimi_export.audio import read_audio

    return read_audio(path, 24000)
