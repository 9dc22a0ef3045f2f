"""The made-up checkpoint: repeatable, alive everywhere, and such that a wrong model gives other codes."""

import copy
import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import snr
from safetensors.torch import load_file
from transformers import MimiConfig, MimiModel

from mimi_export.contract.files import cache_root
from mimi_export.errors import CheckpointError, ConfigError
from mimi_export.media.signals import speech_like
from mimi_export.model import synthetic, upstream
from mimi_export.model.checkpoint import load_checkpoint
from mimi_export.model.synthetic import synthetic_config, synthetic_directory, synthetic_model

FRAMES = 60  # 4.8 s, seven and a half attention windows of the tiny model


@pytest.fixture(scope="module")
def tiny():
    return synthetic_model(synthetic_config("synthetic:tiny"))


@pytest.fixture(scope="module")
def audio():
    return torch.from_numpy(speech_like(FRAMES * 0.08, seed=1000))[None, None]


@pytest.fixture(scope="module")
def codes(tiny, audio):
    return upstream.encode(tiny, audio, 16)


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny):
    first = upstream.tensors_on_disk(tiny)
    second = upstream.tensors_on_disk(synthetic_model(synthetic_config("synthetic:tiny")))
    other = upstream.tensors_on_disk(synthetic_model(synthetic_config("synthetic:tiny"), seed=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    constant = {name for name in first if torch.equal(first[name], other[name])}
    assert constant == {name for name in first if name.endswith("initialized")}


def test_weights_do_not_depend_on_any_initialiser(tiny):
    """The exact values that follow from seed, name and PCG64, whatever torch's and numpy's random numbers do."""
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state must not matter
    weight = upstream.tensors_on_disk(synthetic_model(synthetic_config("synthetic:tiny")))["upsample.conv.weight"]
    assert torch.equal(weight, upstream.tensors_on_disk(tiny)["upsample.conv.weight"])
    expected = [0.65732, 0.94167, -0.90391, 0.56852]
    assert weight[0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_uniform_numbers_have_mean_0_and_variance_1():
    numbers = synthetic._uniform("a name", (200_000,), 0)
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.var() - 1) < 0.01
    assert np.abs(numbers).max() <= np.sqrt(3)


def test_no_tensor_is_trivial(tiny):
    for name, tensor in upstream.tensors_on_disk(tiny).items():
        if not name.endswith("initialized") and tensor.numel() > 1:
            assert tensor.std() > 0, name
        assert bool(torch.isfinite(tensor).all()), name
    scales = [tensor for name, tensor in upstream.tensors_on_disk(tiny).items() if name.endswith(".scale")]
    assert 0.35 < float(torch.cat(scales).mean()) < 0.45


def test_codebooks_have_to_be_divided_by_their_usage(tiny):
    usages = [t for name, t in upstream.tensors_on_disk(tiny).items() if name.endswith("cluster_usage")]
    assert all(float(usage.min()) > 0.1 and float(usage.std()) > 0.5 for usage in usages)


def test_every_codebook_is_alive(codes):
    different = [len(codes[0, k].unique()) for k in range(16)]
    assert min(different) >= 20, different  # of 64 entries in 60 frames; drawing at random would give 39


def test_residual_falls_from_level_to_level(tiny, audio):
    quantizer = upstream.parts(tiny).quantizer.acoustic_residual_vector_quantizer
    residual = quantizer.input_proj(upstream.encode_latents(tiny, audio))[0].T
    energy = [float(residual.square().mean())]
    for layer in quantizer.layers:
        residual = residual - layer.codebook.embed[layer.codebook.quantize(residual)]
        energy.append(float(residual.square().mean()))
    assert all(after < before for before, after in itertools.pairwise(energy)), energy
    assert energy[-1] > 1e-3 * energy[0], "the last level must not live on rounding errors"


@pytest.mark.parametrize("count", [1, 8, 16])
def test_decoded_speech_has_a_listenable_level(tiny, codes, count):
    decoded = upstream.decode(tiny, codes[:, :count])
    assert 0.05 < float(decoded.std()) < 0.2
    assert abs(float(decoded.mean())) < 0.02
    assert bool(torch.isfinite(decoded).all())


def _transformers(model: MimiModel) -> list[torch.nn.Module]:
    return [upstream.parts(model).encoder_transformer, upstream.parts(model).decoder_transformer]


def _zero(name: str, layer: int) -> Callable[[MimiModel], None]:
    def change(model: MimiModel) -> None:
        for transformer in _transformers(model):
            transformer.layers[layer].self_attn.get_submodule(name).weight.data.zero_()

    return change


def _window(tokens: int) -> Callable[[MimiModel], None]:
    def change(model: MimiModel) -> None:
        for transformer in _transformers(model):
            transformer.config.sliding_window = tokens
            for layer in transformer.layers:
                layer.self_attn.sliding_window = tokens

    return change


def _positions(scale: float) -> Callable[[MimiModel], None]:
    """Every distance between tokens counted `scale` times; a common shift is invisible to rotary positions."""

    def change(model: MimiModel) -> None:
        for transformer in _transformers(model):
            for module in transformer.modules():  # one for all layers or one in each, as the version has it
                if hasattr(module, "inv_freq"):
                    module.inv_freq.mul_(scale)

    return change


def _zero_padding(model: MimiModel) -> None:
    upstream.parts(model).downsample.pad_mode = "constant"


WRONG = {
    "zero k_proj 0": _zero("k_proj", 0),
    "zero k_proj 1": _zero("k_proj", 1),
    "zero v_proj 0": _zero("v_proj", 0),
    "zero v_proj 1": _zero("v_proj", 1),
    "no window": _window(10**6),
    "window + 1": _window(17),
    "window - 1": _window(15),
    "positions x 1.1": _positions(1.1),
    "no positions": _positions(0.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_attention_changes_codes_and_audio(tiny, audio, codes, name):
    wrong = copy.deepcopy(tiny)
    WRONG[name](wrong)
    agreement = float((upstream.encode(wrong, audio, 16) == codes).float().mean())
    level = snr(upstream.decode(tiny, codes), upstream.decode(wrong, codes))
    assert agreement < 0.9
    assert level < 50


def test_window_is_not_seen_before_it_is_full(tiny, audio, codes):
    wrong = copy.deepcopy(tiny)
    _window(10**6)(wrong)
    got = upstream.encode(wrong, audio, 16)
    assert torch.equal(got[..., :8], codes[..., :8])
    assert not torch.equal(got[..., 8:], codes[..., 8:])


def test_zeros_for_replicated_padding_change_the_first_frame(tiny, audio, codes):
    wrong = copy.deepcopy(tiny)
    _zero_padding(wrong)
    got = upstream.encode(wrong, audio, 16)
    assert not torch.equal(got[..., 0], codes[..., 0])
    assert torch.equal(got[..., 1:], codes[..., 1:])


OTHER_GEOMETRIES = {
    "ratios": {"upsampling_ratios": [4, 3, 2], "sampling_rate": 600},
    "no projection": {"codebook_dim": 32, "vector_quantization_hidden_dimension": 32},
    "shortcut": {"use_conv_shortcut": True, "num_residual_layers": 2, "upsampling_ratios": [3, 2]},
    "groups": {"upsample_groups": 8, "upsampling_ratios": [5]},
    "semantic": {"num_semantic_quantizers": 3, "upsampling_ratios": [2, 2], "codebook_size": 2},
    "replicate": {"pad_mode": "replicate", "attention_bias": True, "upsampling_ratios": [2, 3]},
}


@pytest.mark.parametrize("name", OTHER_GEOMETRIES)
def test_any_geometry_can_be_made(name):
    base = {"hidden_size": 32, "num_filters": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 16, "codebook_size": 32}
    base |= {"codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_quantizers": 5, "upsample_groups": 32}
    model = synthetic_model(MimiConfig(**{**base, **OTHER_GEOMETRIES[name]}))
    geometry = upstream.geometry_of(model)
    audio = torch.from_numpy(speech_like(40 * geometry.frame_size / geometry.sampling_rate, 7, geometry.sampling_rate))[
        None, None
    ]
    codes = upstream.encode(model, audio, 5)
    assert min(len(codes[0, k].unique()) for k in range(5)) >= min(8, geometry.codebook_size)
    assert 0.01 < float(upstream.decode(model, codes).std()) < 1


def test_geometry_that_cannot_be_streamed_is_refused():
    with pytest.raises(ConfigError, match="use_causal_conv=False"):
        synthetic_model(MimiConfig(**{**synthetic_config("synthetic:tiny").to_dict(), "use_causal_conv": False}))


def test_progress_is_reported():
    seen = []
    synthetic_model(synthetic_config("synthetic:tiny"), progress=lambda *report: seen.append(report))
    assert {"making weights", "encoding speech for the codebooks", "fitting codebooks"} <= {step for step, _, _ in seen}
    assert all(0 <= done <= total for _, done, total in seen)


def test_saved_checkpoint_has_the_same_tensors(tmp_path, tiny):
    directory = synthetic_directory("synthetic:tiny", tmp_path)
    saved = load_file(directory / "model.safetensors")
    made = upstream.tensors_on_disk(tiny)
    assert set(saved) == set(made)
    assert all(torch.equal(saved[name], made[name]) for name in made)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "mimi"


def _not_called(*_: object) -> None:
    raise AssertionError("the checkpoint is made again")


def test_made_once(tmp_path, monkeypatch):
    first = synthetic_directory("synthetic:tiny", tmp_path)
    monkeypatch.setattr(synthetic, "synthetic_model", _not_called)
    assert synthetic_directory("synthetic:tiny", tmp_path) == first


def test_weights_do_not_depend_on_threads(tiny, one_thread):
    torch.set_num_threads(2)
    try:
        made = upstream.tensors_on_disk(synthetic.synthetic_model(synthetic.synthetic_config("synthetic:tiny")))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(tensor, made[name]) for name, tensor in upstream.tensors_on_disk(tiny).items())


@pytest.mark.parametrize("damage", ["truncated", "one bit", "no config", "no weights", "no hashes"])
def test_damaged_cache_is_made_again(tmp_path, damage):
    directory = synthetic_directory("synthetic:tiny", tmp_path)
    weights = directory / "model.safetensors"
    good = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(good[:-100])
    elif damage == "one bit":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    else:
        names = {"no config": "config.json", "no weights": "model.safetensors", "no hashes": "sha256.txt"}
        (directory / names[damage]).unlink()
    assert synthetic_directory("synthetic:tiny", tmp_path) == directory
    assert weights.read_bytes() == good
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".synthetic-tiny-2.lock", "synthetic-tiny-2"], "nothing half-made stays"


def test_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self: MimiModel, path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MimiModel, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_directory("synthetic:tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_cache_that_cannot_be_written_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="set MIMI_EXPORT_CACHE") as caught:
        synthetic_directory("synthetic:tiny", blocked / "cache")
    assert "\n" not in str(caught.value)


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMI_EXPORT_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("MIMI_EXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "mimi-export"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "mimi-export"


@pytest.mark.slow
def test_full_size_has_kyutais_geometry_and_all_codebooks_alive_on_real_speech(full_checkpoint, jfk):
    model, geometry = full_checkpoint.model, full_checkpoint.geometry
    assert sum(parameter.numel() for parameter in model.parameters()) == 79_308_609
    assert (geometry.frame_size, geometry.frame_rate, geometry.sliding_window) == (1920, 12.5, 250)
    clip = torch.from_numpy(jfk[: 38 * 1920])[None, None]
    codes = upstream.encode(model, clip, 32)
    different = [len(codes[0, k].unique()) for k in range(32)]
    assert min(different) >= 30, different  # at most 38
    for count in (8, 32):
        assert 0.05 < float(upstream.decode(model, codes[:, :count]).std()) < 0.2


@pytest.mark.slow
def test_full_size_codes_are_not_decided_by_rounding(full_checkpoint):
    model = full_checkpoint.model
    audio = torch.from_numpy(speech_like(100 * 0.08, seed=1000))[None, None]
    codes = upstream.encode(model, audio, 32)
    exact = copy.deepcopy(model).double()
    upstream.clear_codebook_cache(exact)
    assert float((upstream.encode(exact, audio.double(), 32) == codes).float().mean()) >= 0.999
    assert snr(upstream.decode(exact, codes), upstream.decode(model, codes)) > 110


def test_the_names_of_the_command_line_load(tiny_checkpoint, tiny):
    assert (tiny_checkpoint.source, tiny_checkpoint.revision) == ("synthetic:tiny", "format 2, seed 0")
    for name, tensor in upstream.tensors_on_disk(tiny_checkpoint.model).items():
        assert torch.equal(tensor, upstream.tensors_on_disk(tiny)[name])
    with pytest.raises(ConfigError, match="has no revisions"):
        load_checkpoint("synthetic:tiny", revision="main")
