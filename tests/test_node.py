"""JavaScript clients in Node: transformers.js on whole clips, and onnxruntime-node on streams.

What they give is compared with PyTorch and with the Python runtime. Both bring another build of onnxruntime than
Python's, so audio is compared within rounding.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from contract import Reference
from helpers import DECODER_SNR, snr
from node_tools import FOLDER, need_node, read_output, run_node
from publishing import whole_clips_from

from mimi_export.export.whole_clip import export_batch
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream

FRAME = 1920


@pytest.mark.parametrize("folder", [FOLDER, REPOSITORY / "js"], ids=lambda folder: folder.name)
def test_lock_file_names_no_host_of_packages(folder):
    """Versions and hashes; where packages come from is the business of who installs them."""
    lock = json.loads((folder / "package-lock.json").read_text())
    declared = json.loads((folder / "package.json").read_text())
    for name, version in {**declared.get("dependencies", {}), **declared.get("devDependencies", {})}.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version, "package.json pins exact versions"
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name
        assert not name or package.get("integrity", "").startswith("sha512-"), name


@pytest.fixture(scope="module")
def tiny_batch(tiny_checkpoint, tiny_variant, tmp_path_factory):
    path = tmp_path_factory.mktemp("node") / "batch"
    with pytest.MonkeyPatch.context() as monkeypatch:
        whole_clips_from(monkeypatch, tiny_variant(8))
        export_batch(tiny_checkpoint, path, 8, dtypes=("fp32", "fp16", "q8"))
    return path


def whole_clip(directory, dtype, samples, folder):
    samples.astype(np.float32).tofile(folder / "samples.f32")
    run_node("whole_clips.mjs", directory, dtype, folder / "samples.f32", folder / dtype)
    return read_output(folder / dtype)


def check_heard(reference, codes, audio):
    """Codes of the reference's clip, and the audio that was decoded from them."""
    reference.judge("encoder", codes.shape[1], codes)
    wanted = upstream.decode(reference.model, torch.from_numpy(codes)).numpy()[0, 0]
    assert snr(wanted, audio) >= DECODER_SNR


def check_whole_clip(directory, checkpoint, samples, num_codebooks, folder):
    """transformers.js against PyTorch, on a length that is no whole number of frames."""
    padded = np.pad(samples, (0, -len(samples) % FRAME))
    reference = Reference.of(checkpoint.model, padded, num_codebooks)
    check_heard(reference, *whole_clip(directory, "fp32", samples, folder))


def test_transformers_js(tiny_batch, tiny_checkpoint, tmp_path):
    need_node("@huggingface/transformers", "onnxruntime-node")
    check_whole_clip(tiny_batch, tiny_checkpoint, speech_like(5.03, 8), 8, tmp_path)


def test_transformers_js_jfk(tiny_batch, tiny_checkpoint, jfk, tmp_path):
    need_node("@huggingface/transformers", "onnxruntime-node")
    check_whole_clip(tiny_batch, tiny_checkpoint, jfk, 8, tmp_path)


def test_transformers_js_finds_the_other_data_types(tiny_batch, tmp_path):
    """By the name it asks for; each differs from the others, and audio stays audio."""
    need_node("@huggingface/transformers", "onnxruntime-node")
    samples = speech_like(2, 9)
    found = {dtype: whole_clip(tiny_batch, dtype, samples, tmp_path) for dtype in ("fp32", "fp16", "q8", "default")}
    np.testing.assert_array_equal(found["default"][0], found["fp32"][0])
    assert (found["fp16"][0] == found["fp32"][0]).mean() > 0.9
    assert (found["q8"][0] == found["fp32"][0]).mean() > 0.3
    for codes, audio in found.values():
        assert codes.shape == (1, 8, 25)
        assert audio.size == 25 * FRAME
        assert 0.01 < np.abs(audio).max() < 10


@pytest.mark.slow
def test_transformers_js_full_size(full_checkpoint, tmp_path, jfk):
    need_node("@huggingface/transformers", "onnxruntime-node")
    export_batch(full_checkpoint, tmp_path / "batch", 8)
    check_whole_clip(tmp_path / "batch", full_checkpoint, jfk, 8, tmp_path)


def check_stream(directory, reference, folder, frames_per_call, layers, heads, head_dim):
    """A client in onnxruntime-node that knows only the published contract."""
    reference.audio.tofile(folder / "samples.f32")
    sizes = (frames_per_call, layers, heads, head_dim)
    run_node("stream.mjs", directory, folder / "samples.f32", folder / "out", *sizes)
    check_heard(reference, *read_output(folder / "out"))


@pytest.mark.parametrize("frames_per_call", [1, 3, 100])
def test_stream(tiny_variant, tiny_checkpoint, tmp_path, frames_per_call):
    need_node("onnxruntime-node")
    reference = Reference.of(tiny_checkpoint.model, speech_like(5, 10), 8)
    check_stream(tiny_variant(8), reference, tmp_path, frames_per_call, 2, 2, 8)


def test_stream_jfk(tiny_variant, tiny_checkpoint, jfk, tmp_path):
    need_node("onnxruntime-node")
    check_stream(tiny_variant(16), Reference.of(tiny_checkpoint.model, jfk, 16), tmp_path, 1, 2, 2, 8)


@pytest.mark.slow
def test_stream_full_size(full_variant, full_checkpoint, jfk, tmp_path):
    need_node("onnxruntime-node")
    check_stream(full_variant(8), Reference.of(full_checkpoint.model, jfk, 8), tmp_path, 2, 8, 8, 64)
