"""Weights under Kyutai's names: the law of the conversion, and Kyutai's own programs as a second oracle."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers import snr
from safetensors.torch import load_file
from transformers import MimiConfig, MimiModel

from mimi_export.contract.geometry import Geometry
from mimi_export.errors import CheckpointError, OutputError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.kyutai import interleave_heads, kyutai_state_dict, renames, save_kyutai
from mimi_export.model.synthetic import synthetic_config, synthetic_model

FRAME = 1920
WINDOW_FRAMES = 125  # 250 tokens: until then all programs attend to the same keys

# Names and shapes in the file that Kyutai published, one or two of each kind.
PUBLISHED = {
    "encoder.model.0.conv.conv.weight": (64, 1, 7),
    "encoder.model.1.block.1.conv.conv.weight": (32, 64, 3),
    "encoder.model.10.block.3.conv.conv.bias": (512,),
    "encoder.model.12.conv.conv.weight": (1024, 512, 16),
    "encoder.model.14.conv.conv.bias": (512,),
    "encoder_transformer.transformer.layers.7.self_attn.in_proj_weight": (1536, 512),
    "encoder_transformer.transformer.layers.0.self_attn.out_proj.weight": (512, 512),
    "encoder_transformer.transformer.layers.0.norm1.weight": (512,),
    "encoder_transformer.transformer.layers.0.linear1.weight": (2048, 512),
    "decoder_transformer.transformer.layers.3.norm2.bias": (512,),
    "decoder_transformer.transformer.layers.0.linear2.weight": (512, 2048),
    "decoder_transformer.transformer.layers.0.layer_scale_1.scale": (512,),
    "decoder_transformer.transformer.layers.7.layer_scale_2.scale": (512,),
    "downsample.conv.conv.conv.weight": (512, 512, 4),
    "upsample.convtr.convtr.convtr.weight": (512, 1, 4),
    "quantizer.rvq_first.input_proj.weight": (256, 512, 1),
    "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum": (2048, 256),
    "quantizer.rvq_first.vq.layers.0._codebook._initialized": (1,),
    "quantizer.rvq_rest.output_proj.weight": (512, 256, 1),
    "quantizer.rvq_rest.vq.layers.30._codebook.cluster_usage": (2048,),
    "decoder.model.0.conv.conv.weight": (1024, 512, 7),
    "decoder.model.2.convtr.convtr.weight": (1024, 512, 16),
    "decoder.model.11.convtr.convtr.bias": (64,),
    "decoder.model.12.block.1.conv.conv.bias": (32,),
    "decoder.model.14.conv.conv.weight": (1, 64, 3),
}


@pytest.fixture(scope="module")
def tiny() -> MimiModel:
    return synthetic_model(synthetic_config("synthetic:tiny"))


def geometry_and_state(model: MimiModel) -> tuple[Geometry, dict[str, torch.Tensor]]:
    return upstream.geometry_of(model), upstream.tensors_on_disk(model)


@pytest.mark.parametrize(
    "changes", [{}, {"num_residual_layers": 2}, {"use_conv_shortcut": True}, {"upsampling_ratios": [4, 2]}]
)
def test_every_tensor_on_disk_is_used_exactly_once(changes):
    with torch.device("meta"):
        model = MimiModel(MimiConfig(num_hidden_layers=2, num_quantizers=4, num_semantic_quantizers=2, **changes))
    geometry, state = geometry_and_state(model)
    table = renames(geometry)
    assert sorted(source for rename in table for source in rename.sources) == sorted(state)
    names = [rename.name for rename in table]
    assert len(set(names)) == len(names)


def test_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        geometry, state = geometry_and_state(MimiModel(MimiConfig()))
    converted = kyutai_state_dict(state, geometry)
    assert len(converted) == 318
    shapes = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    assert {name: shapes.get(name) for name in PUBLISHED} == PUBLISHED
    assert sum(tensor.numel() for tensor in converted.values()) == sum(tensor.numel() for tensor in state.values())


def test_interleave_heads_follows_its_law():
    heads, head_dim, hidden = 3, 8, 5
    weight = torch.randn(heads * head_dim, hidden)
    out = interleave_heads(weight, head_dim)
    for h in range(heads):
        for d in range(head_dim // 2):
            for j in (0, 1):
                assert torch.equal(out[h * head_dim + 2 * d + j], weight[h * head_dim + j * head_dim // 2 + d])


def test_interleaved_pairs_rotate_to_the_same_logits():
    """Rotate by complex numbers in each convention: the products of queries and keys must not change."""
    head_dim, hidden = 8, 6
    half = head_dim // 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, hidden, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, head_dim, hidden, generator=generator, dtype=torch.float64)
    angles = torch.arange(4.0, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones_like(angles), angles)
    halves = [torch.complex(y[:, :half], y[:, half:]) * turn for y in (x @ w.T for w in weights)]
    pairs = [torch.view_as_complex((x @ interleave_heads(w, head_dim).T).reshape(4, half, 2)) * turn for w in weights]
    logits = [(q @ k.conj().T).real for q, k in (halves, pairs)]
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)


def test_nothing_but_reordering(tiny):
    geometry, state = geometry_and_state(tiny)
    converted = kyutai_state_dict(state, geometry)
    for rename in renames(geometry):
        before = torch.cat([state[source].flatten() for source in rename.sources])
        assert torch.equal(before.sort().values, converted[rename.name].flatten().sort().values), rename.name
    fused = converted["encoder_transformer.transformer.layers.1.self_attn.in_proj_weight"]
    size = geometry.num_attention_heads * geometry.head_dim
    assert torch.equal(fused[:size][0], state["encoder_transformer.layers.1.self_attn.q_proj.weight"][0])
    values = state["encoder_transformer.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(fused[-len(values) :], values)  # values are not rotated and keep their order


def test_missing_and_unknown_tensors_are_refused(tiny):
    geometry, state = geometry_and_state(tiny)
    missing = {name: tensor for name, tensor in state.items() if name != "downsample.conv.weight"}
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \(downsample\.conv\.weight\)"):
        kyutai_state_dict(missing, geometry)
    unknown = {**state, "encoder.layers.99.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"has 1 tensor \(encoder\.layers\.99\.conv\.weight\)"):
        kyutai_state_dict(unknown, geometry)


def test_saved_file_holds_the_conversion_and_is_not_overwritten(tiny, tmp_path):
    path = tmp_path / "mimi.safetensors"
    save_kyutai(tiny, path)
    geometry, state = geometry_and_state(tiny)
    expected = kyutai_state_dict(state, geometry)
    loaded = load_file(path)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    with pytest.raises(OutputError, match="exists already"):
        save_kyutai(tiny, path)
    save_kyutai(tiny, path, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mimi.safetensors"]


# Kyutai's own programs. They are installed in an environment of their own (`make bench-peers`); the tests below run
# there and are skipped elsewhere.


def load_moshi(model: MimiModel, path, num_codebooks: int):
    """Kyutai's PyTorch model with the weights of `model`, of any geometry that it can build."""
    loaders = pytest.importorskip("moshi.models.loaders", reason="moshi is not installed")
    g = upstream.geometry_of(model)
    config = {name: dict(part) if isinstance(part, dict) else part for name, part in loaders._mimi_config.items()}
    ratios = list(g.upsampling_ratios)
    config["seanet"] |= {"dimension": g.hidden_size, "n_filters": g.num_filters, "ratios": ratios}
    config["quantizer"] |= {"dimension": g.codebook_dim, "n_q": g.num_quantizers, "bins": g.codebook_size}
    config["quantizer"] |= {"input_dimension": g.hidden_size, "output_dimension": g.hidden_size}
    config["transformer"] |= {
        "d_model": g.hidden_size,
        "input_dimension": g.hidden_size,
        "output_dimensions": [g.hidden_size],
        "num_heads": g.num_attention_heads,
        "kv_repeat": g.num_attention_heads // g.num_key_value_heads,
        "num_layers": g.num_hidden_layers,
        "dim_feedforward": g.intermediate_size,
        "context": g.sliding_window,
    }
    return loaders.get_mimi(path, config, num_codebooks=num_codebooks)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")  # moshi would otherwise want a C++ compiler


def frames(data: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    return (block.contiguous() for block in data.split(size, dim=-1))


def differing_frames_that_are_no_ties(model, audio, codes, other) -> list[int]:
    """Frames where `other` departs from `codes` at an entry that is clearly farther than the nearest one.

    Two correct encoders round their latents differently, by about 1e-6 of their norm (126 dB). Where two entries are
    equally far to within 1e-5 of it, either is right, and all later levels of the frame follow from the choice.
    """
    latents = upstream.encode_latents(model, audio)[0]
    semantic, acoustic = (
        getattr(model.quantizer, f"{word}_residual_vector_quantizer") for word in ("semantic", "acoustic")
    )
    bad = []
    for t in (codes != other)[0].any(0).nonzero()[:, 0].tolist():
        level = int((codes != other)[0, :, t].nonzero()[0])
        part, first = (semantic, 0) if level == 0 else (acoustic, 1)
        residual = projected = part.input_proj(latents[None, :, t : t + 1])[0, :, 0]
        for k in range(first, level):
            residual = residual - part.layers[k - first].codebook.embed[codes[0, k, t]]
        distances = (part.layers[level - first].codebook.embed - residual).norm(dim=1)
        gap = distances[other[0, level, t]] - distances[codes[0, level, t]]
        if gap > 1e-5 * projected.norm():
            bad.append(t)
    return bad


def check_moshi_batch(model, path, audio, num_codebooks):
    moshi = load_moshi(model, path, num_codebooks)
    codes = upstream.encode(model, audio, num_codebooks)
    with torch.no_grad():
        assert snr(upstream.encode_latents(model, audio), moshi.encode_to_latent(audio, quantize=False)) >= 115
        other = moshi.encode(audio)
        decoded = moshi.decode(codes)
    assert differing_frames_that_are_no_ties(model, audio, codes, other) == []
    assert float((codes == other).float().mean()) >= 0.999
    # Two float32 programs that add in different orders agree to about 118 dB here; a swapped or
    # misplaced weight leaves less than 20.
    assert snr(upstream.decode(model, codes), decoded) >= 110


def test_moshi_batch_gives_the_same_with_the_tiny_weights(tiny, tmp_path):
    path = tmp_path / "mimi.safetensors"
    save_kyutai(tiny, path)
    audio = torch.from_numpy(speech_like(4.0, 3))[None, None]  # 100 tokens, six windows of this geometry
    check_moshi_batch(tiny, path, audio, 16)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    pytest.importorskip("moshi", reason="moshi is not installed")
    model = synthetic_model(synthetic_config("synthetic"))
    path = tmp_path_factory.mktemp("kyutai") / "mimi.safetensors"
    save_kyutai(model, path)
    return model, path


@pytest.mark.slow
def test_moshi_batch_gives_the_same_on_generated_speech(full):
    check_moshi_batch(*full, torch.from_numpy(speech_like(16.0, 3))[None, None], 32)


@pytest.mark.slow
def test_moshi_batch_gives_the_same_on_real_speech(full, jfk):
    check_moshi_batch(*full, torch.from_numpy(jfk[: len(jfk) // FRAME * FRAME])[None, None], 32)


@pytest.mark.slow
def test_both_streams_give_the_same_for_the_first_window(full):
    model, path = full
    rustymimi = importlib.import_module("rustymimi")
    audio = torch.from_numpy(speech_like(WINDOW_FRAMES * 0.08, 4))[None, None]
    codes = upstream.encode(model, audio, 8)
    reference = upstream.decode(model, codes)

    moshi = load_moshi(model, path, 8)
    with torch.no_grad(), moshi.streaming(1):
        moshi_codes = torch.cat([moshi.encode(block) for block in frames(audio, FRAME)], -1)
        moshi_audio = torch.cat([moshi.decode(block) for block in frames(codes, 1)], -1)
    tokenizer = rustymimi.Tokenizer(str(path), num_codebooks=8)
    rusty_codes = np.concatenate([tokenizer.encode_step(block.numpy()) for block in frames(audio, FRAME)], -1)
    rusty_audio = np.concatenate(
        [tokenizer.decode_step(block.numpy().astype(np.uint32)) for block in frames(codes, 1)], -1
    )
    rusty = torch.from_numpy(rusty_codes.astype(np.int64))
    for other, decoded in ((moshi_codes, moshi_audio), (rusty, torch.from_numpy(rusty_audio))):
        assert differing_frames_that_are_no_ties(model, audio, codes, other) == []
        assert float((codes == other).float().mean()) >= 0.999
        assert snr(reference, decoded) >= 105
