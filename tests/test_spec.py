"""The published contract: `state_spec.txt` byte for byte, and every input and output by name and in order."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SHARED
from transformers import MimiConfig

from mimi_export.contract import network, spec
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import Shape, graph_spec, ring_capacity, state_spec_text
from mimi_export.errors import ConfigError
from mimi_export.model import upstream

# What clients of the published models were written against; typed here once, compared with what is computed.
PUBLISHED_8CB = b"""\
# Conv state specs for streaming ONNX model
# num_codebooks=8
# Format: type name channels temporal_size

[encoder]
conv enc_0 1 6
conv enc_1_b1 64 2
conv enc_3 64 4
conv enc_4_b1 128 2
conv enc_6 128 5
conv enc_7_b1 256 2
conv enc_9 256 6
conv enc_10_b1 512 2
conv enc_12 512 8
conv enc_14 1024 2
conv ds 512 2

[decoder]
conv_tr us 512 2
conv dec_0 512 6
conv_tr dec_2 512 8
conv dec_3_b1 512 2
conv_tr dec_5 256 6
conv dec_6_b1 256 2
conv_tr dec_8 128 5
conv dec_9_b1 128 2
conv_tr dec_11 64 4
conv dec_12_b1 64 2
conv dec_14 64 2
"""
ENCODER_STATES = "enc_0 enc_1_b1 enc_3 enc_4_b1 enc_6 enc_7_b1 enc_9 enc_10_b1 enc_12 enc_14 ds"
DECODER_STATES = "us dec_0 dec_2 dec_3_b1 dec_5 dec_6_b1 dec_8 dec_9_b1 dec_11 dec_12_b1 dec_14"
CONV_STATES = {"encoder": ENCODER_STATES, "decoder": DECODER_STATES}
KV = [f"{word}_{layer}" for layer in range(8) for word in ("key", "value")]


@pytest.fixture(scope="module")
def kyutai() -> Geometry:
    """Kyutai's own geometry: the defaults of `MimiConfig`."""
    return Geometry.from_config(upstream.config_fields(MimiConfig()))


def test_state_spec_is_the_published_file(kyutai):
    path = SHARED / "contract" / "state_spec_8cb.txt"
    if not path.exists():
        pytest.skip("no published state_spec.txt beside the project")
    assert state_spec_text(kyutai, 8).encode() == path.read_bytes()


def test_state_spec_bytes(kyutai):
    assert len(PUBLISHED_8CB) == 534
    assert state_spec_text(kyutai, 8).encode() == PUBLISHED_8CB


@pytest.mark.parametrize("num_codebooks", [1, 16, 32])
def test_state_spec_differs_in_one_line(kyutai, num_codebooks):
    line = f"num_codebooks={num_codebooks}\n".encode()
    assert state_spec_text(kyutai, num_codebooks).encode() == PUBLISHED_8CB.replace(b"num_codebooks=8\n", line)


@pytest.mark.parametrize("num_codebooks", [8, 16, 32])
@pytest.mark.parametrize("kind", spec.GRAPH_KINDS)
def test_window_names_and_order(kyutai, kind, num_codebooks):
    graph = graph_spec(kyutai, kind, Shape(num_codebooks))
    names = [*(f"conv_{name}_state" for name in CONV_STATES[kind].split()), *KV]
    data = {"encoder": ("input_values", "audio_codes"), "decoder": ("audio_codes", "audio_values")}[kind]
    assert [tensor.name for tensor in graph.inputs] == [data[0], *(f"past_{name}" for name in names)]
    assert [tensor.name for tensor in graph.outputs] == [data[1], *(f"present_{name}" for name in names)]
    assert graph.file_name == f"{kind}_model.onnx"
    assert {tensor.name for tensor in (*graph.inputs, *graph.outputs) if tensor.dtype == "int64"} == {"audio_codes"}


def test_window_shapes(kyutai):
    encoder, decoder = graph_spec(kyutai, "encoder", Shape(8)), graph_spec(kyutai, "decoder", Shape(8))
    assert encoder.data_input.shape == ("batch", 1, "samples")
    assert encoder.data_output.shape == ("batch", 8, "frames")
    assert decoder.data_input.shape == ("batch", "codebooks", "frames")
    assert decoder.data_output.shape == ("batch", 1, "samples")
    assert encoder.state("conv_enc_12_state").past_shape == ("batch", 512, 8)
    assert encoder.state("conv_enc_12_state").initial_shape(3) == (3, 512, 8)
    assert decoder.state("key_7").past_shape == ("batch", 8, "past", 64)
    assert decoder.state("key_7").present_shape == ("batch", 8, 250, 64)
    assert decoder.state("key_7").initial_shape(1) == (1, 8, 0, 64)
    growing = graph_spec(kyutai, "decoder", Shape(8, growing=True))
    assert growing.state("key_7").present_shape == ("batch", 8, "present", 64)
    assert (decoder.window_length, growing.window_length) == (250, 249)


@pytest.mark.parametrize("tokens", [0, 1, 2**20 - 1, 2**20, 2**24 + 1, 2**39 + 2**21 + 3])
def test_a_position_is_exact_in_two_float32(tokens):
    low, high = np.array(spec.position_digits(tokens), np.float32).astype(np.float64) * spec.POSITION_BASE
    assert low + high * spec.POSITION_BASE == tokens


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("kind", spec.GRAPH_KINDS)
def test_ring_is_fixed_but_for_the_batch(kyutai, kind, frames):
    graph = graph_spec(kyutai, kind, Shape(8, "ring", frames))
    free = {dim for tensor in (*graph.inputs, *graph.outputs) for dim in tensor.shape if isinstance(dim, str)}
    assert free == ({"batch"} if kind == "encoder" else {"batch", "codebooks"})
    assert graph.inputs[-1].name == "past_position"
    assert graph.outputs[-1].name == "present_position"
    assert graph.states[-1].dtype == "int64"
    assert graph.states[-1].past_shape == ("batch", 1)
    assert [state.name for state in graph.states[:-1]] == [
        state.name for state in graph_spec(kyutai, kind, Shape(8)).states
    ], "a ring has the window's states and one more"
    capacity = ring_capacity(kyutai, frames)
    assert 250 + 2 * frames - 1 <= capacity <= 250 + 2 * frames + 7  # a window for each token of a call, and a round up
    assert all(state.past_shape == state.present_shape for state in graph.states)
    assert graph.state("value_3").past_shape == ("batch", 8, capacity, 64)


@pytest.mark.parametrize(
    ("layout", "frames", "text"),
    [
        ("ring", None, "a ring needs frames_per_call, a window takes any number of frames and must not have it"),
        ("window", 1, "a ring needs frames_per_call, a window takes any number of frames and must not have it"),
        ("ring", 0, "frames_per_call is 0, expected 1 or more"),
    ],
)
def test_layout_and_frames_must_fit(layout, frames, text):
    with pytest.raises(ConfigError) as error:
        Shape(8, layout, frames)
    assert str(error.value) == text


def test_states_have_the_sizes_of_upstream_layers(kyutai, tiny_checkpoint):
    """The sizes computed from the geometry are those of the layers that upstream builds."""
    geometry = tiny_checkpoint.geometry
    parts = upstream.parts(tiny_checkpoint.model)
    halves = {"enc": parts.encoder_seanet, "dec": parts.decoder_seanet, "ds": parts.downsample, "us": parts.upsample}
    seen = set()
    for kind in spec.GRAPH_KINDS:
        for layer in network.conv_layers(geometry, kind):
            conv = halves[layer.name.split("_")[0]].get_submodule(layer.path)
            seen.add(conv)
            assert (conv.in_channels, conv.out_channels) == (layer.in_channels, layer.out_channels), layer.name
            assert (*conv.kernel_size, *conv.stride) == (layer.kernel, layer.stride), layer.name
            assert (*conv.dilation, conv.groups) == (layer.dilation, layer.groups), layer.name
            assert (conv.bias is not None) == layer.bias, layer.name
            assert ("Transpose" in type(conv).__name__) == layer.transposed, layer.name
    every = [m for half in halves.values() for m in half.modules() if type(m).__name__ in ("Conv1d", "ConvTranspose1d")]
    assert len(every) == len(seen), "a convolution of upstream is in no graph"
