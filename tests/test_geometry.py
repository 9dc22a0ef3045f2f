"""Geometry: read from a configuration, derived sizes, and refusals with their reasons."""

from __future__ import annotations

import pytest
from transformers import MimiConfig

from mimi_export.contract.geometry import Geometry
from mimi_export.errors import ConfigError
from mimi_export.model import upstream

KYUTAI = upstream.config_fields(MimiConfig())


def read(**changes) -> Geometry:
    return Geometry.from_config({**KYUTAI, **changes})


def test_kyutais_sizes():
    geometry = read()
    assert geometry.frame_size == 1920
    assert geometry.hop_length == 960
    assert geometry.tokens_per_frame == 2
    assert geometry.frame_rate == 12.5
    assert geometry.bits_per_code == 11
    assert [geometry.bitrate(k) for k in (8, 16, 32)] == [1100, 2200, 4400]
    assert geometry.sliding_window == 250
    assert geometry.head_dim == 64
    assert geometry.rope_theta == 10000


def test_agrees_with_upstreams_configuration():
    config = MimiConfig(upsampling_ratios=[3, 2], sampling_rate=1200, num_key_value_heads=4)
    geometry = Geometry.from_config(upstream.config_fields(config))
    assert geometry.frame_size == config.frame_size
    assert geometry.frame_rate == config.frame_rate
    assert geometry.head_dim == config.head_dim
    assert geometry.tokens_per_frame == int(config.encodec_frame_rate / config.frame_rate)
    if hasattr(config, "latent_stride"):  # from transformers 5.21
        assert geometry.latent_stride == config.latent_stride


def test_older_files_keep_the_rotary_base_flat():
    fields = {name: value for name, value in KYUTAI.items() if name != "rope_parameters"}
    assert Geometry.from_config({**fields, "rope_theta": 5000.0}).rope_theta == 5000
    assert Geometry.from_config(fields).rope_theta == 10000


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "encodec"}, "model_type is \"encodec\", expected 'mimi': this is not a Mimi checkpoint"),
        (
            {"use_causal_conv": False},
            "use_causal_conv=False cannot be streamed: its convolutions look into the future",
        ),
        (
            {"trim_right_ratio": 0.5},
            "trim_right_ratio=0.5 cannot be streamed: only 1.0 trims transposed convolutions wholly on the right, "
            "which keeps them causal",
        ),
        ({"pad_mode": "reflect"}, 'pad_mode="reflect" cannot be streamed; supported: constant, replicate'),
        ({"pad_mode": "wavy"}, 'pad_mode="wavy" cannot be streamed; supported: constant, replicate'),
        ({"audio_channels": 2}, "audio_channels=2: the streaming contract is mono only"),
        ({"hidden_act": "mish"}, 'hidden_act="mish" is not supported; use one of gelu, relu, silu'),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
            "rope_type=\"yarn\" is not supported: only 'default' is relative in position",
        ),
        ({"num_filters": None, "kernel_size": None}, "the model's configuration lacks num_filters, kernel_size"),
        (
            {"frame_rate": 25},
            "frame_rate 25 leaves no downsampling after 25 tokens/s; upstream cannot run such a model either",
        ),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads"),
        ({"head_dim": 7}, "head_dim must be even for rotary positions"),
        ({"upsample_groups": 7}, "upsample_groups must divide hidden_size"),
        ({"codebook_dim": 128}, "codebook_dim must equal vector_quantization_hidden_dimension (256)"),
        ({"num_semantic_quantizers": 32}, "num_semantic_quantizers must be below num_quantizers"),
        ({"num_semantic_quantizers": 0}, "num_semantic_quantizers is 0, expected 1 or more"),
        ({"sliding_window": 0}, "sliding_window is 0, expected 1 or more"),
        # With a window of one token no key is ever kept, so a window graph could not tell a first call from others.
        ({"sliding_window": 1}, "sliding_window must be at least 2 tokens, so that something is kept"),
        ({"num_filters": "64"}, 'config.json: num_filters is "64", expected a whole number'),
        (
            {"frame_rate": -12.5},
            "frame_rate -12.5 leaves no downsampling after 25 tokens/s; upstream cannot run such a model either",
        ),
        ({"upsampling_ratios": [8, 0, 5, 4]}, "upsampling_ratios[1] is 0, expected 1 or more"),
        ({"upsampling_ratios": []}, "the number of upsampling_ratios is 0, expected 1 or more"),
        ({"upsampling_ratios": [2] * 13}, "the number of upsampling_ratios is 13, expected at most 12"),
        ({"sampling_rate": 10**400}, f"sampling_rate is {10**400}, expected at most 1048576"),
        ({"num_residual_layers": 10**9}, "num_residual_layers is 1000000000, expected at most 16"),
        ({"dilation_growth_rate": 64, "num_residual_layers": 16}, "must look back at most 1048576 samples"),
        ({"num_filters": 10**6}, "a layer must have at most 1048576 channels"),
        *(
            ({name: 0}, f"{name} is 0, expected 1 or more")
            for name in (
                "hidden_size",
                "compress",
                "num_attention_heads",
                "num_key_value_heads",
                "sampling_rate",
                "kernel_size",
                "upsample_groups",
                "num_quantizers",
                "codebook_size",
                "intermediate_size",
                "num_filters",
            )
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(changes, text):
    with pytest.raises(ConfigError) as error:
        read(**changes)
    message = str(error.value)
    whole = not message.startswith("this model's sizes do not fit: ")
    assert message == text if whole else text in message
    assert "\n" not in message


@pytest.mark.parametrize("num_codebooks", [-1, 0, 33])
def test_number_of_codebooks(num_codebooks):
    with pytest.raises(ConfigError) as error:
        read().check_num_codebooks(num_codebooks)
    assert str(error.value) == f"num_codebooks is {num_codebooks}, but this model has 1 to 32 codebooks"


def test_number_of_codebooks_includes_all_semantic_ones():
    geometry = read(num_semantic_quantizers=3)
    geometry.check_num_codebooks(3)
    with pytest.raises(ConfigError) as error:
        geometry.check_num_codebooks(2)
    assert str(error.value) == "num_codebooks is 2, but this model has 3 to 32 codebooks"
