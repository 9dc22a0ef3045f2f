"""Files for MaAI's `EncoderMimiOnnx`: its class from PyPI, unchanged, against untouched batch `MimiModel`.

`make test-maai` installs it (`pip install --no-deps maai einops`); elsewhere the tests of the class are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import snr

from mimi_export import FeatureExtractor
from mimi_export.contract.geometry import Geometry
from mimi_export.export.maai import export_maai, maai_spec, stream_latents
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.runtime import load
from mimi_export.runtime.linear import LinearResampler

F = 1920
SECONDS = 32
MOST_MS = 31  # a frame in the product that this is for, with its turn-taking model, as its authors report


@dataclass(frozen=True)
class Made:
    """Files of calls of `frames`; audio `[2, n]` and its latents `[2, T, hidden]`."""

    path: Path
    frames: int
    geometry: Geometry
    audio: np.ndarray
    latents: np.ndarray

    def graph(self, precision: str = "fp32", rows: int = 1) -> Path:
        name = f"continuous_mimi_{precision}" + "_b2" * (rows == 2) + f"_{self.frames}f" * (self.frames > 1)
        return self.path / f"{name}.onnx"


@pytest.fixture(
    scope="module",
    params=["tiny-2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tiny-1", "full-1", "full-2"))],
)
def made(request, tmp_path_factory):
    size, frames = request.param.split("-")
    checkpoint = request.getfixturevalue(f"{size}_checkpoint")
    path = tmp_path_factory.mktemp("maai") / request.param
    export_maai(checkpoint, path, int(frames))
    audio = np.stack([speech_like(SECONDS, seed)[: SECONDS * 24000 // (2 * F) * 2 * F] for seed in (3, 4)])
    latents = upstream.encode_latents(checkpoint.model, torch.from_numpy(audio[:, None])).transpose(1, 2).numpy()
    return Made(path, int(frames), checkpoint.geometry, audio.astype(np.float32), latents)


@pytest.fixture(scope="module")
def open_class():
    """Open `EncoderMimiOnnx`, loaded without the rest of its package, which imports desktop programs."""
    pytest.importorskip("einops", reason="einops is not installed; make test-maai")
    found = importlib.util.find_spec("maai")
    if found is None or not found.submodule_search_locations:
        pytest.skip("maai is not installed; make test-maai")
    stub = types.ModuleType("maai")
    stub.__path__ = list(found.submodule_search_locations)
    sys.modules["maai"] = stub
    encoder_class = importlib.import_module("maai.encoder").EncoderMimiOnnx

    def open_graph(made, path, meta=None):
        return encoder_class(
            frame_hz=12.5, onnx_model_path=str(path), onnx_meta_path=str(meta or path.with_suffix(".json")),
            output_dim=made.latents.shape[2], frames_per_call=made.frames, onnx_cpu_intra_threads=1,
        )  # fmt: skip

    try:
        yield open_graph
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "maai"]:
            del sys.modules[name]


def test_files(made):
    record = json.loads((made.path / "maai.json").read_text())
    graphs = [made.graph(precision, rows) for rows in (1, 2) for precision in ("fp32", "int8")]
    written = {graph.stem + end for graph in graphs for end in (".onnx", ".json", ".onnx.json")}
    assert {path.name for path in made.path.iterdir()} == {"maai.json", *written}
    for whole, rounded in zip(graphs[::2], graphs[1::2], strict=True):
        assert rounded.stat().st_size < 0.6 * whole.stat().st_size, "an int8 file that is smaller than its fp32 one"
    assert record["frames_per_call"] == made.frames
    meta = json.loads(graphs[0].with_suffix(".json").read_text())
    graph = onnx.load(graphs[0]).graph
    assert [value.name for value in graph.input] == meta["input_names"]
    assert [value.name for value in graph.output] == meta["output_names"]
    assert meta["output_names"][:2] == ["embeddings", "cache_position_out"]
    assert meta["required_params"] == {
        "frame_rate": 12.5, "context_samples": 320, "frames_per_call": made.frames,
        "wave_16k_call_window": 320 + 1280 * made.frames, "wave_24k_mimi_input": 1920 * made.frames,
    }  # fmt: skip


@pytest.mark.parametrize(("precision", "least"), [("fp32", 110), ("int8", 30)])  # one frame alone may lose some dB
def test_both_speakers_in_one_call(made, precision, least):
    """Every row from the first frame on, long after the ring is full."""
    session = ort.InferenceSession(made.graph(precision, 2))
    found = stream_latents(session, maai_spec(made.geometry, 2, made.frames), made.geometry, made.audio)
    for row in range(2):
        assert snr(made.latents[row], found[row]) >= least
        assert snr(made.latents[row, :1], found[row, :1]) >= least


@pytest.mark.parametrize(("precision", "least"), [("fp32", 110), ("int8", 30)])
def test_the_class_itself(made, open_class, precision, least):
    audio, latents, path = made.audio[0], made.latents[0], made.graph(precision)
    for meta in (path.with_suffix(".json"), path.with_name(f"{path.name}.json")):
        encoder = open_class(made, path, meta)
        first = embeddings(encoder, audio)
        assert snr(latents, first[0].numpy()) >= least
        assert snr(latents[:1], first[0, :1].numpy()) >= least
        encoder.reset_streaming_state()
        assert torch.equal(embeddings(encoder, audio), first)


@torch.no_grad()
def test_frame_rates_of_the_class(made, open_class):
    """What its frame-rate change gives, ours gives before its trained convolution, for each of its rates."""
    encoder = open_class(made, made.graph())
    latents = torch.from_numpy(made.latents[:1])
    for rate in (10, 20, 25, 50):
        encoder.frame_hz, encoder._frame_rate_conv_cache = float(rate), None
        calls = latents.split(made.frames, dim=1)
        ends = [number == len(calls) - 1 for number in range(len(calls))]
        theirs = [encoder._align_frame_rate(call, 0, True, end) for call, end in zip(calls, ends, strict=True)]
        lines = LinearResampler(12.5, rate, axis=1)
        rest = lines.push(made.latents[:1]), lines.flush()
        ours = np.concatenate([part for part in rest if part is not None], axis=1)
        assert ours.shape[1] == round(made.latents.shape[1] * rate / 12.5)
        encoder._frame_rate_conv_cache = None
        ours = encoder._apply_frame_rate_conv_streaming(torch.from_numpy(ours.transpose(0, 2, 1)))
        assert snr(torch.cat(theirs, dim=1), ours.transpose(1, 2)) >= 110


def test_windows_of_a_microphone(made, open_class, tiny_variant):
    """16 kHz with 320 samples of overlap: a call gives what `FeatureExtractor` gives."""
    if made.geometry.hidden_size == 512:
        pytest.skip("the tiny sizes are enough")
    sound = speech_like(4, seed=8, sampling_rate=16000)[: 48 * 1280]
    padded, step = np.pad(sound, (320, 0)), 1280 * made.frames
    windows = [padded[start : start + 320 + step] for start in range(0, len(sound), step)]
    encoder = open_class(made, made.graph())
    theirs = [encoder.forward_shared(torch.from_numpy(window[None, None]))[0] for window in windows]
    codec = load(tiny_variant(0, head="latents", start="latents"))
    extractor = FeatureExtractor(codec, 16000, overlap=320, linear=True)
    ours = [extractor.push(window) for window in windows]
    assert {part.shape[1] for part in ours} == {made.frames}
    assert snr(torch.cat(theirs, dim=1), np.concatenate(ours, axis=1)) >= 110


@pytest.mark.slow
def test_time_of_a_call(made, open_class):
    """Of the processor, so that nobody else's work counts; one thread, a full window."""
    encoder = open_class(made, made.graph())
    spent = []
    for call in torch.from_numpy(made.audio[0]).reshape(-1, 1, made.frames * F).split(1):
        begin = time.process_time()
        encoder.forward_shared(call, resampling=False, has_overlap_context=False)
        spent.append(1000 * (time.process_time() - begin))
    median = float(np.median(spent[len(spent) // 2 :]))
    assert median < MOST_MS * made.frames


def embeddings(encoder, audio):
    frames = encoder._onnx_frames_per_call
    calls = torch.from_numpy(audio).reshape(-1, 1, frames * F).split(1)
    shared = [encoder.forward_shared(call, resampling=False, has_overlap_context=False)[0] for call in calls]
    return torch.cat(shared, dim=1)
