"""Each step function against the upstream module that it replaces: any split into calls gives the same signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import snr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import MimiConfig, MimiModel
from transformers.models.mimi import modeling_mimi as mimi

from mimi_export.contract.network import ConvLayer
from mimi_export.contract.spec import position_digits
from mimi_export.model import upstream
from mimi_export.model.steps.cache import RingCache, WindowCache, last_first
from mimi_export.model.steps.conv import CausalConv, CausalConvTranspose, conv_step
from mimi_export.model.steps.matmul import matmul, matmul_weight
from mimi_export.model.steps.quantizer import ResidualDecoder, ResidualEncoder
from mimi_export.model.steps.rope import exact_rotation, half_swap, phase_steps
from mimi_export.model.steps.transformer import TransformerLayer, elu

ONE_LAYER = 120.0  # dB: float32 with sums in another order; one layer loses 10 to 15 dB of float32's 150
FAST = settings(max_examples=40, deadline=None)

call_lengths = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def assert_streams(step, state, x: torch.Tensor, lengths: list[int], wanted: torch.Tensor) -> None:
    """Calls of these lengths, in whatever `x` has of it, give the whole; the state keeps its shape."""
    outputs, unit = [], x.shape[2] // sum(lengths)
    for block in x.split([length * unit for length in lengths], dim=2):
        shape = None if state is None else state.shape
        y, state = step(block, state)
        outputs.append(y)
        assert y.shape[2] * x.shape[2] == block.shape[2] * wanted.shape[2]
        assert (None if state is None else state.shape) == shape
    assert snr(wanted, torch.cat(outputs, dim=2)) >= ONE_LAYER


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval().requires_grad_(False)


@st.composite
def conv_sizes(draw):
    """Kernel, stride, dilation, groups: strided convolutions of Mimi have twice their stride as kernel."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    if draw(st.booleans()):
        stride = draw(st.integers(2, 8))
        return 2 * stride, stride, 1, groups
    return draw(st.integers(1, 7)), 1, draw(st.integers(1, 4)), groups


@FAST
@given(conv_sizes(), call_lengths, st.sampled_from(["constant", "replicate"]), st.booleans(), st.integers(0, 2**31))
@torch.no_grad()
def test_convolution(sizes, lengths, pad_mode, bias, seed):
    kernel, stride, dilation, groups = sizes
    torch.manual_seed(seed)
    reference = randomise(
        mimi.MimiConv1d(MimiConfig(), 4, 8, kernel, stride, dilation, groups, pad_mode=pad_mode, bias=bias)
    )
    x = torch.randn(2, 4, sum(lengths) * stride)
    for make, steps in ((CausalConv, 1), (conv_step, 1), (conv_step, 100), (conv_step, 10**6)):
        layer = ConvLayer("c", "", 4, 8, kernel, stride, dilation, groups, bias, pad_mode=pad_mode, steps=steps)
        state = torch.zeros(2, 4, layer.state_size) if layer.state_size else None
        if state is not None and pad_mode == "replicate":
            state = x[:, :, :1].expand_as(state)
        assert_streams(make(layer, reference.conv.weight, reference.conv.bias), state, x, lengths, reference(x))


@FAST
@given(st.integers(1, 8), st.sampled_from([1, 2, 4, 8]), call_lengths, st.booleans(), st.integers(0, 2**31))
@torch.no_grad()
def test_transposed_convolution(stride, groups, lengths, bias, seed):
    torch.manual_seed(seed)
    reference = randomise(mimi.MimiConvTranspose1d(MimiConfig(), 8, 8, 2 * stride, stride, groups, bias))
    x = torch.randn(2, 8, sum(lengths))
    for make, steps in ((CausalConvTranspose, 1), (conv_step, 1), (conv_step, 100), (conv_step, 10**6)):
        layer = ConvLayer("t", "", 8, 8, 2 * stride, stride, 1, groups, bias, transposed=True, steps=steps)
        step = make(layer, reference.conv.weight, reference.conv.bias)
        assert_streams(step, torch.zeros(2, 8, layer.state_size), x, lengths, reference(x))


@pytest.mark.parametrize("length", [0, 1, 15])
def test_last_first(length):
    x = torch.randn(2, 3, length, 4)
    assert torch.equal(last_first(x), x.roll(1, dims=2))


def test_matmul_is_upstreams_linear():
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40)
    x = torch.randn(2, 5, 24)
    assert snr(linear(x).detach(), matmul(x, matmul_weight(linear.weight), linear.bias).detach()) >= ONE_LAYER


@pytest.mark.parametrize("head_dim", [2, 8, 64])
def test_rotation_is_upstreams(head_dim):
    torch.manual_seed(0)
    config = MimiConfig(head_dim=head_dim)
    query, key = torch.randn(2, 2, 4, 300, head_dim)
    positions = torch.arange(300)
    cos, sin = mimi.MimiRotaryEmbedding(config)(query, positions[None])
    wanted = mimi.apply_rotary_pos_emb(query, key, cos, sin)
    cos, sin = exact_rotation(positions, phase_steps(head_dim, 10000.0))
    for x, right in zip((query, key), wanted, strict=True):
        turned = x * cos + (x @ half_swap(head_dim)) * sin
        assert snr(right, turned) >= 105  # upstream rounds its angles: 300 rad to 1.5e-5


def test_half_swap_is_exact():
    x = torch.randn(3, 8)
    assert torch.equal(x @ half_swap(8), torch.cat([x[:, 4:], x[:, :4]], dim=1))


def test_elu_is_upstreams():
    x = torch.cat([torch.randn(10_000), torch.tensor([0.0, -0.0, 1e-9, -1e-9, 30.0, -30.0, 1e9, -1e9, 200.0])])
    wanted = torch.nn.functional.elu(x.double())
    assert float((elu(x).double() - wanted).abs().div(1 + wanted.abs()).max()) < 1.2e-7
    assert elu(torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize("origin", [1, 10**6, 2**31 - 400])
def test_rotation_is_relative_at_any_position(origin):
    """What attention sees, the turn from a key to a query, does not depend on how long the stream has run."""
    steps = phase_steps(64, 10000.0)
    near, far = (exact_rotation(torch.arange(250) + start, steps) for start in (0, origin))
    turns = [
        (cos * cos[:1] + sin * sin[:1], sin * cos[:1] - cos * sin[:1]) for cos, sin in (near, far)
    ]  # angle of token i minus angle of token 0
    for first, second in zip(*turns, strict=True):
        assert float((first - second).abs().max()) < 1.5e-6  # two float32 angles below 2 pi, each to 5e-7


def small_model(**changes) -> MimiModel:
    """An upstream transformer on which attention matters: large queries and keys, layer scales far from zero."""
    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 9, "num_filters": 2, "upsample_groups": 16, "codebook_size": 8,
        "codebook_dim": 6, "vector_quantization_hidden_dimension": 6, "num_quantizers": 6, "upsampling_ratios": [2],
    }  # fmt: skip
    torch.manual_seed(3)
    model = MimiModel(MimiConfig(**{**sizes, **changes})).eval().requires_grad_(False)
    for name, tensor in upstream.tensors_on_disk(model).items():
        if "transformer" in name:
            spread = 0.6 if "_proj" in name else 0.3
            tensor.copy_((1.0 if "norm.weight" in name else 0.0) + spread * torch.randn_like(tensor))
        if "scale" in name:
            tensor.fill_(0.4)
        if "codebook" in name and "initialized" not in name:
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "usage" in name else torch.randn_like(tensor))
    upstream.clear_codebook_cache(model)
    return model


CHANGES = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "head_dim": 6},
    {"attention_bias": True, "hidden_act": "silu"},
    {"sliding_window": 2, "hidden_act": "relu", "norm_eps": 1e-2},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_transformer_with_a_window(changes):
    """The second row's stream begins 20 tokens later, by zeros; the beginning of all states may be cut off."""
    model = small_model(**changes)
    geometry = upstream.geometry_of(model)
    reference = upstream.parts(model).decoder_transformer
    layers = [TransformerLayer(geometry, layer.state_dict()) for layer in reference.layers]
    window = geometry.sliding_window
    x = torch.randn(2, 60, 16)
    parts = [(x[:1], 0), (x[1:, :20], 0), (x[1:, 20:], 20)]
    for lengths in ([20, 40], [1] * 60, [1, 2, 3, 4, 10, 20, 20], [9, 8, 3, 23, 17]):
        empty = torch.zeros(2, geometry.num_key_value_heads, 0, geometry.head_dim)
        states = [(empty, empty) for _ in layers]
        outputs, past = [], 0
        for block in x.transpose(0, 1).split(lengths):
            if past == 20:
                states = [tuple(torch.cat([state[:1], 0 * state[1:]]) for state in pair) for pair in states]
            cache = WindowCache(geometry, states[0][1], block.shape[0], half_swap(geometry.head_dim))
            assert cache.fresh.flatten().tolist() == [past == 0, past in (0, 20)]
            past += block.shape[0]
            y = block
            for index, layer in enumerate(layers):
                key, value = states[index]
                y, key, value = layer(y, key, value if index else cache.opened(value), cache)
                states[index] = key, value if index else cache.closed(value)
                assert all(state.shape[2] == window for state in states[index])
            outputs.append(y.transpose(0, 1))
        found = torch.cat(outputs, dim=1)
        for row, (part, start) in zip((found[:1], found[1:, :20], found[1:, 20:]), parts, strict=True):
            wanted = reference(part).last_hidden_state
            assert snr(wanted, row) >= ONE_LAYER - 10, start  # two layers, and a softmax in each


def test_a_position_travels_beyond_what_a_float_counts():
    geometry = upstream.geometry_of(small_model())
    values = torch.zeros(2, geometry.num_key_value_heads, geometry.sliding_window, geometry.head_dim)
    start = torch.tensor([2**30 + 2**24 + 1, 0])
    values[:, :, -1, :2] = torch.tensor([position_digits(int(tokens)) for tokens in start])[:, None]
    for call in range(3):
        cache = WindowCache(geometry, values, 1, half_swap(geometry.head_dim))
        assert cache._tokens.flatten().tolist() == (start + call).tolist()
        values = cache.closed(values)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("new", [1, 2, 4, 10])
@torch.no_grad()
def test_transformer_with_a_ring(changes, new):
    """Rows are streams of their own: one begins 20 tokens later, in slots full of garbage."""
    model = small_model(**changes)
    geometry = upstream.geometry_of(model)
    reference = upstream.parts(model).decoder_transformer
    layers = [TransformerLayer(geometry, layer.state_dict()) for layer in reference.layers]
    capacity = geometry.sliding_window + new - 1
    shape = (2, geometry.num_key_value_heads, capacity, geometry.head_dim)
    states = [(1e3 * torch.randn(shape), 1e3 * torch.randn(shape)) for _ in layers]
    x = torch.randn(2, 60, 16)
    position, outputs = torch.zeros(2, 1, dtype=torch.int64), []
    for call, block in enumerate(x.transpose(0, 1).split(new)):
        if call * new == 20:
            position[1] = 0
        cache = RingCache(geometry, position, new, capacity, half_swap(geometry.head_dim))
        assert torch.equal(cache.fresh[:, :, 0], position == 0)
        y = block
        for index, layer in enumerate(layers):
            y, *states[index] = layer(y, *states[index], cache)
            assert all(state.shape == shape for state in states[index])
        position = cache.present["position"]
        outputs.append(y.transpose(0, 1))
    assert position.flatten().tolist() == [60, 40]
    found = torch.cat(outputs, dim=1)
    assert snr(reference(x[:1]).last_hidden_state, found[:1]) >= ONE_LAYER - 10
    assert snr(reference(x[1:, :20]).last_hidden_state, found[1:, :20]) >= ONE_LAYER - 10
    assert snr(reference(x[1:, 20:]).last_hidden_state, found[1:, 20:]) >= ONE_LAYER - 10


def quantizer_parts(model: MimiModel, half: str):
    reference = getattr(upstream.parts(model).quantizer, f"{half}_residual_vector_quantizer")
    books = [layer.codebook.embed for layer in reference.layers]
    matrices = [conv and conv.weight[:, :, 0] for conv in (reference.input_proj, reference.output_proj)]
    return reference, books, *matrices


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**31))
@torch.no_grad()
def test_quantizer(levels, seed):
    model = small_model()
    reference, books, into, out = quantizer_parts(model, "acoustic")
    latents = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 16, 7), np.float32))
    wanted = reference.encode(latents, levels).transpose(0, 1)  # [B, levels, T]
    encoder = ResidualEncoder(into, books[:levels])
    codes = torch.stack([code.reshape(2, 7) for code in encoder(latents.transpose(1, 2).reshape(-1, 16))], dim=1)
    assume_no_tie(reference, latents, wanted)
    assert torch.equal(codes, wanted)
    decoder = ResidualDecoder(out, books)
    assert snr(reference.decode(wanted), decoder(wanted).transpose(1, 2)) >= ONE_LAYER


def assume_no_tie(reference, latents: torch.Tensor, codes: torch.Tensor) -> None:
    """Leave out the rare draw in which two entries are equally near."""
    residual = reference.input_proj(latents).transpose(1, 2).double()
    for level in range(codes.shape[1]):
        entries = reference.layers[level].codebook.embed.double()
        nearest = torch.cdist(residual, entries).topk(2, largest=False).values
        assume(float((nearest[..., 1] - nearest[..., 0]).min()) > 1e-4)
        residual = residual - entries[codes[:, level]]


def test_quantizer_without_projection():
    torch.manual_seed(0)
    books = list(torch.randn(3, 32, 16))
    latents = torch.randn(50, 16)
    residual, wanted = latents.double(), []
    for book in books:
        wanted.append(torch.cdist(residual, book.double()).argmin(dim=1))
        residual = residual - book[wanted[-1]]
    found = ResidualEncoder(None, books)(latents)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    total = ResidualDecoder(None, books)(torch.stack(found)[None])
    assert snr(latents - residual, total[0]) >= ONE_LAYER


def test_decoder_takes_any_number_of_levels():
    torch.manual_seed(0)
    decoder = ResidualDecoder(torch.randn(10, 6), list(torch.randn(5, 8, 6)))
    codes = torch.randint(0, 8, (2, 5, 9))
    total = torch.zeros(2, 9, 10)
    assert torch.equal(decoder(codes[:, :0]), total)
    for levels in range(1, 6):
        alone = decoder.table[codes[:, levels - 1] + 8 * (levels - 1)] @ decoder.projection
        total = total + alone
        assert snr(total, decoder(codes[:, :levels])) >= ONE_LAYER
