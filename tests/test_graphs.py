"""The streaming modules in PyTorch against untouched batch `MimiModel`, over geometries and both layouts.

Every geometry is drawn small: a frame is 4 to some 60 samples, and a window is filled many times over.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import transformers
from contract import Reference, garbage, verify_stream
from helpers import PATTERNS, stream, torch_step, zeros
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from transformers import MimiConfig, MimiModel

from mimi_export.contract.spec import GRAPH_KINDS, Shape, graph_spec
from mimi_export.errors import ConfigError
from mimi_export.model import upstream
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import Call, StreamingGraph, initial_states, streaming_graph
from mimi_export.model.synthetic import synthetic_model

FRAMES = 40
BATCH = 3
BASE = {
    "upsampling_ratios": [3, 2], "hidden_size": 24, "num_filters": 4, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 12, "codebook_size": 32, "codebook_dim": 12,
    "vector_quantization_hidden_dimension": 12, "num_quantizers": 6, "upsample_groups": 24, "sampling_rate": 1200,
}  # fmt: skip


@functools.lru_cache(maxsize=8)
def _checkpoint(changes: tuple) -> Checkpoint:
    sizes = {**BASE, **dict(changes)}
    model = synthetic_model(MimiConfig(**{**sizes, "upsampling_ratios": list(sizes["upsampling_ratios"])}))
    return Checkpoint(model, upstream.geometry_of(model), "synthetic:test", None)


def checkpoint_of(**changes) -> Checkpoint:
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return _checkpoint(tuple(sorted(changes.items())))


def noise(checkpoint: Checkpoint, frames: int, batch: int = BATCH, seed: int = 0) -> torch.Tensor:
    """Audio with an envelope, a different one in each row."""
    samples = frames * checkpoint.geometry.frame_size
    generator = torch.Generator().manual_seed(seed)
    envelope = torch.linspace(0.3, 3, samples) * torch.tensor([0.1, 0.3, 0.02])[:batch, None, None]
    return torch.randn(batch, 1, samples, generator=generator) * envelope


def build(checkpoint: Checkpoint, kind: str, num_codebooks: int, layout: str, frames: int | None) -> StreamingGraph:
    return streaming_graph(checkpoint, graph_spec(checkpoint.geometry, kind, Shape(num_codebooks, layout, frames)))


def verify(checkpoint: Checkpoint, num_codebooks: int, layout: str, pattern: list[int]) -> None:
    """Both graphs, streamed in `pattern`, against batch upstream."""
    reference = Reference.of(checkpoint.model, noise(checkpoint, FRAMES).numpy(), num_codebooks)
    alive = [len(np.unique(codes)) for codes in reference.codes.transpose(1, 0, 2)]
    assert min(alive) >= 4, "a codebook that is hardly used"
    for kind in GRAPH_KINDS:
        graph = build(checkpoint, kind, num_codebooks, layout, pattern[0] if layout == "ring" else None)
        verify_stream(torch_step(graph), graph.graph, reference, [pattern])


@st.composite
def geometries(draw):
    heads, groups = draw(st.sampled_from([(4, 4), (4, 2), (4, 1), (2, 2), (6, 3)]))
    return {
        "upsampling_ratios": draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)),
        "num_filters": draw(st.sampled_from([2, 4])),
        "kernel_size": draw(st.sampled_from([1, 3, 7])),
        "last_kernel_size": draw(st.sampled_from([1, 3, 4])),
        "residual_kernel_size": draw(st.sampled_from([1, 3, 5])),
        "num_residual_layers": draw(st.sampled_from([0, 1, 1, 2, 3])),
        "dilation_growth_rate": draw(st.integers(1, 3)),
        "compress": draw(st.sampled_from([1, 2])),
        "use_conv_shortcut": draw(st.booleans()),
        "pad_mode": draw(st.sampled_from(["constant", "replicate"])),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": draw(st.sampled_from([None, 2, 6])),
        "num_hidden_layers": draw(st.sampled_from([1, 2])),
        "attention_bias": draw(st.booleans()),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu"])),
        "sliding_window": draw(st.integers(2, 20)),
        "num_semantic_quantizers": draw(st.sampled_from([1, 2, 3])),
        "upsample_groups": draw(st.sampled_from([1, 8, 24])),
    }


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    geometries(),
    st.integers(3, 6),
    st.one_of(
        st.tuples(st.just("ring"), st.lists(st.integers(1, 5), min_size=1, max_size=1)),
        st.tuples(st.just("window"), st.lists(st.integers(1, 9), min_size=1, max_size=6)),
    ),
)
def test_any_geometry_streams_exactly(changes, num_codebooks, layout_and_pattern):
    layout, pattern = layout_and_pattern
    while layout == "ring" and FRAMES % pattern[0]:
        pattern = [pattern[0] - 1]
    verify(checkpoint_of(**changes), num_codebooks, layout, pattern)


# Each of these reaches code that no other geometry does; drawn ones need not.
SPECIAL = {
    "base": {},
    "replicate": {"pad_mode": "replicate", "num_residual_layers": 2},
    "grouped keys": {"num_key_value_heads": 1, "head_dim": 2},
    "window of two": {"sliding_window": 2},
    "odd window": {"sliding_window": 7},
    "semantic quantizers": {"num_semantic_quantizers": 3},
    "attention bias": {"attention_bias": True, "hidden_act": "relu"},
    "shortcut": {"use_conv_shortcut": True, "compress": 1, "num_residual_layers": 3, "dilation_growth_rate": 3},
    "no state": {"kernel_size": 1, "last_kernel_size": 1, "residual_kernel_size": 1},
    "no residual": {"num_residual_layers": 0, "upsampling_ratios": [5]},
}


@pytest.mark.parametrize("layout", ["window", "ring"])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_geometry_streams_exactly(name, layout):
    verify(checkpoint_of(**SPECIAL[name]), 6, layout, [2] if layout == "ring" else PATTERNS["mixture"])


@pytest.mark.parametrize("layout", ["window", "ring"])
def test_slower_codec_frames(layout):
    """Four transformer tokens a frame: transformers from 5.21 build it, older ones are refused."""
    if Version(transformers.__version__) < Version("5.21"):
        with pytest.raises(ConfigError, match=r"versions from 5\.21 build what is asked"):
            checkpoint_of(frame_rate=1200 / 6 / 4)
        pytest.skip(f"transformers {transformers.__version__} builds no other downsampling than by 2")
    checkpoint = checkpoint_of(frame_rate=1200 / 6 / 4)
    assert checkpoint.geometry.tokens_per_frame == 4
    verify(checkpoint, 6, layout, [2] if layout == "ring" else PATTERNS["mixture"])


def test_dead_codebook_entries():
    """Upstream divides by the usage but never by less than epsilon; an entry that was never used is the origin."""
    checkpoint = checkpoint_of(codebook_dim=12, num_filters=2)
    for name, tensor in upstream.tensors_on_disk(checkpoint.model).items():
        if name.endswith("cluster_usage"):
            tensor[::3] = 0
        if name.endswith("embed_sum"):
            tensor[::3] *= 1e-7
    upstream.clear_codebook_cache(checkpoint.model)
    verify(checkpoint, 6, "window", [3])


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_tiny_checkpoint_at_any_chunking(tiny_checkpoint, pattern):
    verify(tiny_checkpoint, 16, "window", pattern)


@pytest.mark.parametrize("num_codebooks", [1, 2, 8])
def test_tiny_checkpoint_with_fewer_codebooks(tiny_checkpoint, num_codebooks):
    verify(tiny_checkpoint, num_codebooks, "window", PATTERNS["mixture"])


@pytest.mark.parametrize("frames", [1, 2, 4, 5])
def test_tiny_checkpoint_in_a_ring(tiny_checkpoint, frames):
    verify(tiny_checkpoint, 16, "ring", [frames])


@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_ring_row_restarts_at_position_zero_whatever_it_holds(tiny_checkpoint, kind):
    """Rows are streams of their own, and one integer begins a new one in the middle of another."""
    graph = build(tiny_checkpoint, kind, 8, "ring", 1)
    unit = tiny_checkpoint.geometry.frame_size if kind == "encoder" else 1
    first = Reference.of(tiny_checkpoint.model, noise(tiny_checkpoint, 30, batch=2).numpy(), 8)
    second = Reference.of(tiny_checkpoint.model, first.audio[:, :, 11 * 1920 :], 8)

    def restart(frame, states):
        if frame != 11:
            return states
        states = {name: value.copy() for name, value in states.items()}
        states["position"][1] = 0
        for name, value in garbage(states).items():
            states[name][1] = value[1]
        return states

    data = first.data(kind, 8).copy()
    data[1, :, 11 * unit :] = second.data(kind, 8)[1]
    mixed, last = stream(torch_step(graph), zeros(graph.graph, 2), data, unit, [1], restart)
    assert last["position"].flatten().tolist() == [60, 38]
    first.row(0).judge(kind, 8, mixed[:1])
    at = 11 * (mixed.shape[2] // 30)
    first.row(1).judge(kind, 8, mixed[1:, :, :at])
    second.row(1).judge(kind, 8, mixed[1:, :, at:])


@torch.no_grad()
def test_decoder_takes_fewer_codebooks(tiny_checkpoint):
    reference = Reference.of(tiny_checkpoint.model, noise(tiny_checkpoint, 24).numpy(), 16)
    decoder = build(tiny_checkpoint, "decoder", 16, "window", None)
    for count in (1, 2, 8, 15):
        decoded, _ = stream(torch_step(decoder), zeros(decoder.graph, 3), reference.data("decoder", count), 1, [4])
        reference.judge("decoder", count, decoded)


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize(("layout", "frames"), [("window", None), ("ring", 2)])
@torch.no_grad()
def test_initial_states_and_taps(tiny_checkpoint, kind, layout, frames):
    graph = build(tiny_checkpoint, kind, 8, layout, frames)
    states = initial_states(graph.graph, 2)
    assert [tuple(state.shape) for state in states] == [state.initial_shape(2) for state in graph.graph.states]
    assert all(not state.any() for state in states)
    data = torch.zeros(2, 1, 2 * 1920) if kind == "encoder" else torch.zeros(2, 8, 2, dtype=torch.int64)
    names: list[str] = []
    graph.run(lambda name, _: names.append(name), data, *states)
    assert "latents" in names
    assert "transformer_1" in names
    assert len(names) == len(set(names))
    outputs = graph(data, *states)
    for state, tensor in zip(graph.graph.states, outputs[1:], strict=True):
        present = [size if isinstance(size, int) else None for size in state.present_shape]
        assert all(want is None or want == got for want, got in zip(present, tensor.shape, strict=True)), state.name


@pytest.mark.parametrize(
    ("put", "text"),
    [
        (["key_0", "value_0", "key_0"], "this encoder puts key_0 twice"),
        (["key_0", "key_9"], "this encoder puts key_9 and has no such state"),
        (["key_0", "value_1"], "this encoder puts no conv_enc_0_state, .*, conv_ds_state, value_0, key_1 for the next"),
    ],
)
@torch.no_grad()
def test_every_state_is_put_once(tiny_checkpoint, monkeypatch, put, text):
    """Whichever step forgets a state, or takes another's name, is told so."""
    graph = build(tiny_checkpoint, "encoder", 8, "window", None)

    def step(call: Call, data: torch.Tensor) -> torch.Tensor:
        for name in put:
            call.put(name, data)
        return data

    monkeypatch.setattr(graph, "step", step)
    with pytest.raises(RuntimeError, match=text):
        graph(torch.zeros(1, 1, 1920), *initial_states(graph.graph, 1))


def test_upstream_model_is_left_as_it_was():
    """Building and running graphs reads the weights and changes none."""
    checkpoint = checkpoint_of(num_filters=2, codebook_size=16)
    before = {name: tensor.clone() for name, tensor in upstream.tensors_on_disk(checkpoint.model).items()}
    verify(checkpoint, 4, "window", [2])
    after = upstream.tensors_on_disk(checkpoint.model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert isinstance(checkpoint.model, MimiModel)
