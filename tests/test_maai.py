"""Files for MaAI's `EncoderMimiOnnx`: its class from PyPI, unchanged, against untouched batch `MimiModel`.

`make test-maai` installs it (`pip install --no-deps maai einops`); elsewhere the tests of the class are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import snr

from mimi_export.export.maai import export_maai, maai_spec, stream_latents
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream

F = 1920
SECONDS = 32


@pytest.fixture(scope="module")
def directory(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("maai") / "two"
    export_maai(tiny_checkpoint, path, 2)
    return path


@pytest.fixture(scope="module")
def truth(tiny_checkpoint):
    """Audio `[2, n]` and latents `[2, T, hidden]`."""
    audio = np.stack([speech_like(SECONDS, seed)[: SECONDS * 24000 // (2 * F) * 2 * F] for seed in (3, 4)])
    latents = upstream.encode_latents(tiny_checkpoint.model, torch.from_numpy(audio[:, None]))
    return audio.astype(np.float32), latents.transpose(1, 2).numpy()


@pytest.fixture(scope="module")
def encoder_class():
    """`EncoderMimiOnnx`, loaded without the rest of its package, which imports desktop programs."""
    pytest.importorskip("einops", reason="einops is not installed; make test-maai")
    found = importlib.util.find_spec("maai")
    if found is None or not found.submodule_search_locations:
        pytest.skip("maai is not installed; make test-maai")
    stub = types.ModuleType("maai")
    stub.__path__ = list(found.submodule_search_locations)
    sys.modules["maai"] = stub
    try:
        yield importlib.import_module("maai.encoder").EncoderMimiOnnx
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "maai"]:
            del sys.modules[name]


def test_files(directory):
    record = json.loads((directory / "maai.json").read_text())
    names = [f"continuous_mimi_{precision}{rows}_2f" for rows in ("", "_b2") for precision in ("fp32", "int8")]
    made = {name + end for name in names for end in (".onnx", ".json", ".onnx.json")}
    assert {path.name for path in directory.iterdir()} == {"maai.json", *made}
    sizes = {name: (directory / f"{name}.onnx").stat().st_size for name in names}
    assert sizes[names[1]] < 0.6 * sizes[names[0]], "an int8 file that is smaller than its fp32 one"
    assert record["frames_per_call"] == 2
    meta = json.loads((directory / f"{names[0]}.json").read_text())
    graph = onnx.load(directory / f"{names[0]}.onnx").graph
    assert [value.name for value in graph.input] == meta["input_names"]
    assert [value.name for value in graph.output] == meta["output_names"]
    assert meta["output_names"][:2] == ["embeddings", "cache_position_out"]
    assert meta["required_params"] == {
        "frame_rate": 12.5, "context_samples": 320, "frames_per_call": 2,
        "wave_16k_call_window": 320 + 1280 * 2, "wave_24k_mimi_input": 1920 * 2,
    }  # fmt: skip


@pytest.mark.parametrize(("precision", "least"), [("fp32", 110), ("int8", 30)])  # one frame alone may lose some dB
def test_both_speakers_in_one_call(directory, tiny_checkpoint, truth, precision, least):
    """Every row from the first frame on, long after the ring is full."""
    geometry, (audio, latents) = tiny_checkpoint.geometry, truth
    session = ort.InferenceSession(directory / f"continuous_mimi_{precision}_b2_2f.onnx")
    found = stream_latents(session, maai_spec(geometry, 2, 2), geometry, audio)
    for row in range(2):
        assert snr(latents[row], found[row]) >= least
        assert snr(latents[row, :1], found[row, :1]) >= least


def test_the_class_itself(directory, truth, encoder_class):
    audio, latents = truth[0][0], truth[1][0]
    path = directory / "continuous_mimi_fp32_2f.onnx"
    for meta in (path.with_suffix(".json"), path.with_name(f"{path.name}.json")):
        encoder = encoder_class(
            frame_hz=12.5, onnx_model_path=str(path), onnx_meta_path=str(meta), output_dim=latents.shape[1],
            frames_per_call=2, onnx_cpu_intra_threads=1,
        )  # fmt: skip
        first = embeddings(encoder, audio)
        assert snr(latents, first[0].numpy()) >= 110
        assert snr(latents[:1], first[0, :1].numpy()) >= 110
        encoder.reset_streaming_state()
        assert torch.equal(embeddings(encoder, audio), first)
        for rate in (10, 20, 25, 50):
            encoder.reset_streaming_state()
            encoder.frame_hz = float(rate)
            aligned = [encoder._align_frame_rate(call, 2560, True, False) for call in first[:, :100].split(2, dim=1)]
            assert abs(torch.cat(aligned, dim=1).shape[1] - 100 * rate / 12.5) <= rate / 12.5
            encoder.frame_hz = 12.5


def embeddings(encoder, audio):
    calls = torch.from_numpy(audio).reshape(-1, 1, 2 * F).split(1)
    shared = [encoder.forward_shared(call, resampling=False, has_overlap_context=False)[0] for call in calls]
    return torch.cat(shared, dim=1)
