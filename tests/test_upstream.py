"""The adapter: both module layouts, versions that are refused, and the untouched reference behind one interface."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import MimiConfig, MimiModel

from mimi_export.errors import AudioError, CheckpointError, CodesError, ConfigError
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.synthetic import synthetic_config

PARTS = ["encoder_seanet", "encoder_transformer", "downsample", "quantizer"]
PARTS += ["upsample", "decoder_transformer", "decoder_seanet"]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return tiny_checkpoint.model


@pytest.fixture(scope="module")
def audio(tiny_checkpoint):
    samples = 20 * tiny_checkpoint.geometry.frame_size
    rows = [torch.from_numpy(speech_like(samples / 24000, seed)) for seed in range(2)]
    return torch.stack(rows)[:, None]


@pytest.mark.parametrize("version", ["4.45.0", "4.57.1", "5.0.0", "5.2.9"])
def test_old_transformers_is_refused_with_the_reason_and_the_remedy(version):
    with pytest.raises(CheckpointError) as caught:
        upstream.check_transformers_version(version)
    text = str(caught.value)
    assert version in text
    assert "no sliding attention window" in text
    assert "pip install 'transformers>=5.3,<6'" in text
    assert "\n" not in text


@pytest.mark.parametrize("version", ["5.3.0", "5.5.4", "5.20.0", "5.21.0", "5.100.1"])
def test_good_transformers_is_accepted(version):
    upstream.check_transformers_version(version)


def test_installed_transformers_is_accepted():
    upstream.check_transformers_version()


def _module() -> nn.Module:
    return nn.Linear(1, 1)


def test_parts_in_the_flat_layout():
    model = SimpleNamespace(**{name: _module() for name in PARTS if "seanet" not in name})
    model.encoder, model.decoder = _module(), _module()
    found = upstream.parts(model)
    assert found.encoder_seanet is model.encoder
    assert found.decoder_seanet is model.decoder
    for name in (name for name in PARTS if "seanet" not in name):
        assert getattr(found, name) is getattr(model, name)


def test_parts_in_halves():
    encoder = SimpleNamespace(**{name: _module() for name in PARTS[:3]})
    decoder = SimpleNamespace(**{name: _module() for name in PARTS[4:]})
    model = SimpleNamespace(encoder=encoder, decoder=decoder, quantizer=_module())
    found = upstream.parts(model)
    assert [getattr(found, name) for name in PARTS] == [
        *(getattr(encoder, name) for name in PARTS[:3]),
        model.quantizer,
        *(getattr(decoder, name) for name in PARTS[4:]),
    ]


@pytest.mark.parametrize(
    ("missing", "words"), [(PARTS[:3], "lacks encoder_seanet, .*both halves"), (PARTS[5:], "lacks decoder_transformer")]
)
def test_a_codec_in_part_is_refused(missing, words):
    encoder, decoder = (
        SimpleNamespace(**{name: None if name in missing else _module() for name in names})
        for names in (PARTS[:3], PARTS[4:])
    )
    with pytest.raises(ConfigError, match=words):
        upstream.parts(SimpleNamespace(encoder=encoder, decoder=decoder, quantizer=_module()))


def test_an_encoder_alone_is_a_model(tiny):
    model = copy.deepcopy(tiny)
    upstream.remove_decoder(model)
    assert upstream.has_decoder(tiny)
    assert not upstream.has_decoder(model)
    names = set(upstream.tensors_on_disk(model))
    assert names == {name for name in upstream.tensors_on_disk(tiny) if not name.startswith(upstream.DECODER_PREFIXES)}
    with pytest.raises(ConfigError, match="has no decoder"):
        upstream.decode(model, torch.zeros((1, 8, 3), dtype=torch.int64))


def test_names_on_disk_are_the_published_ones(tiny):
    names = set(upstream.tensors_on_disk(tiny))
    assert {name.split(".")[0] for name in names} == {
        "encoder", "encoder_transformer", "downsample", "quantizer", "upsample", "decoder_transformer", "decoder",
    }  # fmt: skip
    assert {
        "encoder.layers.0.conv.weight",
        "encoder_transformer.layers.0.self_attn.q_proj.weight",
        "downsample.conv.weight",
        "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum",
        "quantizer.acoustic_residual_vector_quantizer.input_proj.weight",
        "upsample.conv.weight",
        "decoder_transformer.layers.1.mlp.fc2.weight",
        "decoder.layers.0.conv.bias",
    } <= names
    assert len(names) == len(tiny.state_dict())


def test_tensors_on_disk_are_live(tiny):
    tensor = upstream.tensors_on_disk(tiny)["downsample.conv.weight"]
    assert tensor.data_ptr() == upstream.parts(tiny).downsample.conv.weight.data_ptr()


@pytest.mark.parametrize("frame_rate", [None, 12.5])
def test_geometry_knows_the_frame_rate_wherever_the_configuration_has_it(frame_rate):
    fields = synthetic_config("synthetic:tiny").to_dict()
    fields.pop("_frame_rate")
    config = MimiConfig.from_dict({**fields, **({} if frame_rate is None else {"frame_rate": frame_rate})})
    assert upstream.config_fields(config)["frame_rate"] == 12.5
    geometry = upstream.geometry_of(MimiModel(config))
    assert (geometry.latent_stride, geometry.frame_size, geometry.frame_rate) == (2, 1920, 12.5)


def test_geometry_is_compared_with_the_layers_that_were_built(tiny):
    other = MimiModel(synthetic_config("synthetic:tiny"))
    other.config._frame_rate = 6.25  # as a version that ignores it in one place would leave it
    with pytest.raises(ConfigError, match=r"downsampling by 4, but transformers .* builds one by 2"):
        upstream.geometry_of(other)


def test_reference_functions_are_upstreams_own_results(tiny, audio):
    with torch.no_grad():
        codes = tiny.encode(audio, num_quantizers=8).audio_codes
        decoded = tiny.decode(codes).audio_values
    assert torch.equal(upstream.encode(tiny, audio, 8), codes)
    assert torch.equal(upstream.quantize_latents(tiny, upstream.encode_latents(tiny, audio), 8), codes)
    assert torch.equal(upstream.decode(tiny, codes), decoded)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 8, 20)
    assert decoded.shape == audio.shape


def test_reference_takes_whole_frames_only(tiny, audio):
    for bad in (audio[..., :-1], audio[..., :0], audio[0], audio.expand(2, 2, -1)):
        with pytest.raises(AudioError, match="whole number of frames of 1920 samples"):
            upstream.encode(tiny, bad, 8)
        with pytest.raises(AudioError, match="whole number of frames"):
            upstream.encode_latents(tiny, bad)


def test_reference_refuses_bad_codes(tiny, audio):
    codes = upstream.encode(tiny, audio, 4)
    with pytest.raises(CodesError, match="expected 0 to 63"):
        upstream.decode(tiny, codes + 64)
    with pytest.raises(CodesError, match="expected 0 to 63"):
        upstream.decode(tiny, codes - 64)
    with pytest.raises(CodesError, match="expected int64"):
        upstream.decode(tiny, codes.int())
    with pytest.raises(CodesError, match=r"expected int64 \[batch, codebooks, frames\]"):
        upstream.decode(tiny, codes[0])
    with pytest.raises(ConfigError, match="1 to 16 codebooks"):
        upstream.encode(tiny, audio, 17)


def test_codebook_cache_is_cleared(tiny, audio):
    codebook = upstream.parts(tiny).quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    upstream.encode(tiny, audio, 1)
    assert codebook._embed is not None
    upstream.clear_codebook_cache(tiny)
    assert codebook._embed is None
