"""Where weights come from: Kyutai's own files, encoders alone, models inside larger ones, fine-tuned directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import DECODER_SNR, snr
from safetensors.torch import save_file

from mimi_export.errors import ArtifactError, CheckpointError, ConfigError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.checkpoint import WEIGHTS, load_checkpoint
from mimi_export.model.kyutai import huggingface_state_dict, kyutai_state_dict, save_kyutai
from mimi_export.runtime import load


@pytest.fixture(scope="module")
def weights(tiny_checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in upstream.tensors_on_disk(tiny_checkpoint.model).items()}


@pytest.fixture
def write(tiny_checkpoint, tmp_path):
    """`write(tensors, fields, name)` makes a checkpoint's directory; fields are of its `config.json`."""

    def make(tensors, fields=None, name="model.safetensors") -> Path:
        save_file(tensors, tmp_path / name)
        config = tiny_checkpoint.model.config.to_dict()
        (tmp_path / "config.json").write_text(json.dumps(config if fields is None else fields(config)))
        return tmp_path

    return make


def same(model, tensors) -> bool:
    found = upstream.tensors_on_disk(model)
    return found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def encoder_only(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith(upstream.DECODER_PREFIXES)}


def test_kyutai_names_there_and_back(weights, tiny_checkpoint):
    kyutai = kyutai_state_dict(weights, tiny_checkpoint.geometry)
    back = huggingface_state_dict(kyutai, tiny_checkpoint.geometry)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_file_in_kyutai_names(write, weights, tiny_checkpoint, tmp_path):
    write(weights)
    save_kyutai(tiny_checkpoint.model, tmp_path / "kyutai.safetensors")
    loaded = load_checkpoint(str(tmp_path / "kyutai.safetensors"))
    assert same(loaded.model, weights)
    assert loaded.source == "kyutai.safetensors"
    assert loaded.geometry == tiny_checkpoint.geometry


def test_a_file_in_kyutai_names_with_a_wrong_tensor(write, weights, tiny_checkpoint, tmp_path):
    write(weights)
    kyutai = kyutai_state_dict(weights, tiny_checkpoint.geometry)
    name = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    for tensors, words in (
        ({**kyutai, name: kyutai[name][:-3]}, "cannot split"),
        ({**kyutai, "more": kyutai[name]}, "has no place"),
        ({key: tensor for key, tensor in kyutai.items() if key != name}, "lacks 1 tensor"),
    ):
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(str(tmp_path / "bad.safetensors"))


def test_an_encoder_alone(write, weights):
    tensors = encoder_only(weights)
    loaded = load_checkpoint(str(write(tensors)))
    assert not upstream.has_decoder(loaded.model)
    assert same(loaded.model, tensors)


def test_half_a_decoder_is_refused(write, weights):
    tensors = {**encoder_only(weights), "upsample.conv.weight": weights["upsample.conv.weight"]}
    with pytest.raises(CheckpointError, match=r"lacks .* tensors of its configuration"):
        load_checkpoint(str(write(tensors)))


def test_inside_a_larger_checkpoint(write, weights):
    """As a speech tokeniser keeps it: an encoder below a prefix, its configuration below a key."""
    inner = {f"encoder.{name}": tensor for name, tensor in encoder_only(weights).items()}
    tensors = {**inner, "decoder.something.weight": torch.zeros(3)}
    directory = write(tensors, lambda config: {"model_type": "a_tokenizer", "encoder_config": config})
    loaded = load_checkpoint(str(directory))
    assert not upstream.has_decoder(loaded.model)
    assert same(loaded.model, encoder_only(weights))
    save_file(
        {**tensors, **{f"other.{name}": tensor.clone() for name, tensor in inner.items()}},
        directory / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match="holds 2 Mimi models"):
        load_checkpoint(str(directory))


def test_a_fine_tuned_directory(write, weights):
    """`save_pretrained` in another precision than the original, with other weights."""
    tuned = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    loaded = load_checkpoint(str(write(tuned)))
    assert same(loaded.model, {name: tensor.to(weights[name].dtype) for name, tensor in tuned.items()})
    with pytest.raises(ConfigError, match="has no revisions"):
        load_checkpoint(str(write(tuned)), "main")


@pytest.mark.parametrize(
    ("size", "kind"),
    [("tiny", "inside"), *(pytest.param("full", kind, marks=pytest.mark.slow) for kind in ("inside", "kyutai"))],
)
def test_exported_exactly(request, tmp_path, cli, size, kind):
    """From the command line: codes and latents of untouched batch PyTorch, longer than the attention's window."""
    checkpoint = request.getfixturevalue(f"{size}_checkpoint")
    source = tmp_path / ("kyutai.safetensors" if kind == "kyutai" else "larger")
    if kind == "kyutai":
        save_kyutai(checkpoint.model, source)
    else:
        source.mkdir()
        inner = encoder_only(upstream.tensors_on_disk(checkpoint.model))
        save_file({f"encoder.{name}": tensor.contiguous() for name, tensor in inner.items()}, source / WEIGHTS)
        config = {"model_type": "a_tokenizer", "encoder_config": checkpoint.model.config.to_dict()}
        (source / "config.json").write_text(json.dumps(config))
        code, _, error = cli("export", "--model", source, "--from", "codes", "--output-dir", tmp_path / "no")
        assert (code, "this model is an encoder alone: it has no decoder" in error) == (3, True), error
    code, _, error = cli("export", "--model", source, "--head", "both", "--output-dir", tmp_path / "made")
    assert code == 0, error
    audio = speech_like(25, seed=6)[: 300 * 1920]
    latents = upstream.encode_latents(checkpoint.model, torch.from_numpy(audio[None, None]))
    codec = load(tmp_path / "made")
    encoded = codec.encoder.stream().encode(audio)
    assert torch.equal(torch.from_numpy(encoded.codes), upstream.quantize_latents(checkpoint.model, latents, 8))
    assert snr(latents[0].T, encoded.latents[0]) >= DECODER_SNR
    if kind == "kyutai":
        heard = codec.decoder.stream().push(encoded.codes)
        assert snr(upstream.decode(checkpoint.model, torch.from_numpy(encoded.codes))[0], heard) >= DECODER_SNR
    else:
        with pytest.raises(ArtifactError, match="has no decoder"):
            codec.decoder.stream()
