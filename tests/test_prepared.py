"""Graphs that are kept as onnxruntime has prepared them."""

from __future__ import annotations

import os
import shutil

import numpy as np
import onnxruntime as ort
import pytest

from mimi_export.errors import ConfigError, GraphError, OutputError
from mimi_export.runtime import load, prepared
from mimi_export.runtime.processor import fingerprint


def push(directory, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a signal, and their samples."""
    codec = load(directory, **settings)
    samples = np.sin(np.arange(6 * codec.geometry.frame_size) / 9).astype(np.float32)
    codes = codec.encoder.stream().push(samples)
    return codes, codec.decoder.stream().push(codes)


@pytest.mark.parametrize("layout", [("window",), ("ring", 1)])
def test_a_prepared_graph_gives_the_same_and_is_made_once(tiny_variant, tmp_path, layout):
    directory = tiny_variant(8, *layout)
    cache = tmp_path / "cache"
    wanted = push(directory)
    times = []
    for _ in range(2):
        for got, want in zip(push(directory, prepared=cache), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
        times.append(sorted(path.stat().st_mtime_ns for path in cache.rglob("*")))
    assert times[0] == times[1]
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["decoder_model", "encoder_model"]
    assert all((kept / prepared.WEIGHTS).stat().st_size > 10_000 for kept in cache.iterdir())


def test_another_file_onnxruntime_processor_or_setting_makes_it_anew(tiny_variant, tmp_path, monkeypatch):
    directory, cache = tmp_path / "variant", tmp_path / "cache"
    shutil.copytree(tiny_variant(), directory)
    path = load(directory).artifact.graph_path("encoder")
    first = prepared.prepare(path, cache, {})
    made = first.stat().st_ino
    assert prepared.prepare(path, cache, {}).stat().st_ino == made
    os.utime(path, ns=(0, 12345))
    assert prepared.prepare(path, cache, {}) == first, "an old form of the same file is replaced"
    assert first.stat().st_ino != made
    monkeypatch.setattr(prepared, "fingerprint", lambda: fingerprint() + " amx_int8")
    assert prepared.prepare(path, cache, {}) != first
    monkeypatch.undo()
    monkeypatch.setattr(ort, "__version__", "9.9")
    assert prepared.prepare(path, cache, {}) != first
    monkeypatch.undo()
    named = {"session.optimized_model_external_initializers_file_name": "other.bin"}
    assert (prepared.prepare(path, cache, named).parent / "other.bin").is_file()
    assert len(list(cache.iterdir())) == 4


def test_what_cannot_be_prepared_is_one_error_and_leaves_nothing(tiny_variant, tmp_path):
    directory, cache = tmp_path / "variant", tmp_path / "cache"
    shutil.copytree(tiny_variant(), directory)
    with pytest.raises(ConfigError, match="prepared graphs are for the provider cpu alone, got"):
        _ = load(directory, providers=ort.get_available_providers()[:1] * 2, prepared=cache).encoder.graph
    kept = prepared.prepare(load(directory).artifact.graph_path("encoder"), cache, {})
    kept.write_bytes(b"damaged")
    with pytest.raises(GraphError, match=f"{kept} does not load"):
        _ = load(directory, prepared=cache).encoder.graph
    (kept.parent / prepared.STAMP).unlink()
    with pytest.raises(OutputError, match="has no made-of"):
        _ = load(directory, prepared=cache).encoder.graph
    shutil.rmtree(cache)
    path = load(directory).artifact.graph_path("encoder")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(GraphError, match="encoder_model\\.onnx is no ONNX graph that can be read"):
        _ = load(directory, prepared=cache).encoder.graph
    assert not cache.exists()
