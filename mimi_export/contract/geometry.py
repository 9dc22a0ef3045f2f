"""The shape of a Mimi model: every size the graphs and their states are computed from.

`Geometry` is read from the fields of a `MimiConfig` (its `config.json`) and from nothing else. A configuration
that cannot be streamed exactly is refused here, by name and with the reason, so no later module has to ask.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mimi_export.contract.records import Reader, check_range, shown
from mimi_export.errors import ConfigError

ACTIVATIONS = ("gelu", "relu", "silu")
PAD_MODES = ("constant", "replicate")
_READER = Reader(Path("config.json"), ConfigError)
# No model comes near; what is looped over or doubled has a lower limit. A stranger's file may hold anything.
MOST_SIZE = 1 << 20
_MOST = {
    "num_residual_layers": 16,
    "num_hidden_layers": 128,
    "num_quantizers": 1024,
    "dilation_growth_rate": 64,
    "the number of upsampling_ratios": 12,
}


@dataclass(frozen=True)
class Geometry:
    """Sizes of a Mimi model, under the names that `MimiConfig` gives them where it has one.

    Units: `sampling_rate` in Hz; `sliding_window` in transformer tokens; kernels, strides and `frame_size` in
    samples at the rate of the layer they belong to (`frame_size`: audio samples).
    """

    sampling_rate: int
    hidden_size: int
    num_filters: int
    num_residual_layers: int
    upsampling_ratios: tuple[int, ...]
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    dilation_growth_rate: int
    pad_mode: str
    compress: int
    use_conv_shortcut: bool
    upsample_groups: int
    latent_stride: int
    num_quantizers: int
    num_semantic_quantizers: int
    codebook_size: int
    codebook_dim: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    norm_eps: float
    attention_bias: bool
    rope_theta: float
    sliding_window: int

    def __post_init__(self) -> None:
        """Refuse, before anything is divided, looped over or allocated, what no model has."""
        _check_sizes(vars(self))
        if self.pad_mode not in PAD_MODES:
            raise ConfigError(f"pad_mode={shown(self.pad_mode)} cannot be streamed; supported: {', '.join(PAD_MODES)}")
        if self.hidden_act not in ACTIVATIONS:
            words = ", ".join(ACTIVATIONS)
            raise ConfigError(f"hidden_act={shown(self.hidden_act)} is not supported; use one of {words}")
        for rule, holds in {
            "sliding_window must be at least 2 tokens, so that something is kept": self.sliding_window >= 2,
            "num_attention_heads must be a multiple of num_key_value_heads": (
                self.num_attention_heads % self.num_key_value_heads == 0
            ),
            "head_dim must be even for rotary positions": self.head_dim % 2 == 0,
            "rope_theta must be positive": self.rope_theta > 0,
            "norm_eps must be above 0 and below 1": 0 < self.norm_eps < 1,
            "upsample_groups must divide hidden_size": self.hidden_size % self.upsample_groups == 0,
            "num_semantic_quantizers must be below num_quantizers": self.num_semantic_quantizers < self.num_quantizers,
            f"a frame must have at most {MOST_SIZE} samples": self.frame_size <= MOST_SIZE,
            f"a layer must have at most {MOST_SIZE} channels": (
                self.num_filters * 2 ** len(self.upsampling_ratios) <= MOST_SIZE
            ),
            f"a residual unit must look back at most {MOST_SIZE} samples": (
                self.residual_kernel_size * self.dilation_growth_rate**self.num_residual_layers <= MOST_SIZE
            ),
        }.items():
            if not holds:
                raise ConfigError(f"this model's sizes do not fit: {rule}")

    @property
    def hop_length(self) -> int:
        """Audio samples per transformer token."""
        return math.prod(self.upsampling_ratios)

    @property
    def tokens_per_frame(self) -> int:
        """Transformer tokens per codec frame."""
        return self.latent_stride

    @property
    def frame_size(self) -> int:
        """Audio samples per codec frame (1920 for Kyutai's model)."""
        return self.hop_length * self.latent_stride

    @property
    def frame_rate(self) -> float:
        """Codec frames per second (12.5 for Kyutai's model)."""
        return self.sampling_rate / self.frame_size

    @property
    def bits_per_code(self) -> int:
        """Bits that one code carries."""
        return (self.codebook_size - 1).bit_length()

    def bitrate(self, num_codebooks: int) -> float:
        """Bits per second of a stream of `num_codebooks` codes a frame."""
        return self.frame_rate * self.bits_per_code * num_codebooks

    def check_num_codebooks(self, num_codebooks: int) -> None:
        """Raise `ConfigError` unless the model can encode to `num_codebooks` codes a frame."""
        least, most = self.num_semantic_quantizers, self.num_quantizers
        if not least <= num_codebooks <= most:
            raise ConfigError(f"num_codebooks is {num_codebooks}, but this model has {least} to {most} codebooks")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Geometry:
        """Read the geometry from the fields of a `MimiConfig` (`config.to_dict()` or a parsed `config.json`).

        Raises:
            ConfigError: the model cannot be streamed exactly, or the upstream code cannot run it either.
        """
        _refuse_unstreamable(config)
        hints = get_type_hints(cls)
        fields = {name: _READER.value(hints[name], config[name], name) for name in _COPIED_FIELDS}
        given = config["upsampling_ratios"]
        given = list(given) if isinstance(given, tuple) else given
        ratios = _READER.value(hints["upsampling_ratios"], given, "upsampling_ratios")
        _check_sizes({**fields, "upsampling_ratios": ratios})
        hop_length, sampling_rate, heads = math.prod(ratios), fields["sampling_rate"], fields["num_attention_heads"]
        token_rate = math.ceil(sampling_rate / hop_length)  # upstream's `encodec_frame_rate`
        rates = [config[name] for name in ("frame_rate", "_frame_rate") if config.get(name) is not None]
        frame_rate = _READER.value(float, rates[0], "frame_rate") if rates else sampling_rate / hop_length / 2
        latent_stride = int(token_rate / frame_rate) if frame_rate > 0 else 0
        if latent_stride < 2:
            raise ConfigError(
                f"frame_rate {frame_rate:g} leaves no downsampling after {token_rate} tokens/s; "
                "upstream cannot run such a model either"
            )
        inner, width = config.get("vector_quantization_hidden_dimension"), fields["codebook_dim"]
        if width != inner:
            raise ConfigError(
                "this model's sizes do not fit: codebook_dim must equal vector_quantization_hidden_dimension "
                f"({shown(inner)})"
            )
        return cls(
            **fields,
            upsampling_ratios=ratios,
            latent_stride=latent_stride,
            head_dim=_READER.value(int, config.get("head_dim") or fields["hidden_size"] // heads, "head_dim"),
            rope_theta=_READER.value(float, _rope_parameters(config).get("rope_theta"), "rope_theta"),
        )


_DERIVED_FIELDS = ("upsampling_ratios", "latent_stride", "head_dim", "rope_theta")
_COPIED_FIELDS = [entry.name for entry in dataclasses.fields(Geometry) if entry.name not in _DERIVED_FIELDS]
# Everything of a model's configuration that matters here: what is copied, computed from, or refused.
CONFIG_FIELDS = frozenset({
    *_COPIED_FIELDS, "model_type", "upsampling_ratios", "frame_rate", "_frame_rate", "head_dim", "rope_parameters",
    "rope_theta", "vector_quantization_hidden_dimension", "use_causal_conv", "trim_right_ratio", "audio_channels",
})  # fmt: skip


def _check_sizes(fields: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a whole number among a geometry's fields that no model has."""
    ratios = fields["upsampling_ratios"]
    sizes = {name: value for name, value in fields.items() if type(value) is int}
    sizes |= {f"upsampling_ratios[{index}]": ratio for index, ratio in enumerate(ratios)}
    sizes["the number of upsampling_ratios"] = len(ratios)
    for name, value in sizes.items():
        check_range(name, value, 0 if name == "num_residual_layers" else 1, _MOST.get(name, MOST_SIZE))


def _rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary settings, under the key of transformers 5 or the flat one of older files."""
    found = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    parameters: Mapping[str, Any] = _READER.value(dict[str, Any], found, "rope_parameters")
    return parameters


def _refuse_unstreamable(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a configuration that no causal stream can reproduce, or that is not Mimi."""
    if config.get("model_type") != "mimi":
        raise ConfigError(
            f"model_type is {shown(config.get('model_type'))}, expected 'mimi': this is not a Mimi checkpoint"
        )
    missing = [name for name in (*_COPIED_FIELDS, "upsampling_ratios") if config.get(name) is None]
    if missing:
        raise ConfigError(f"the model's configuration lacks {', '.join(missing)}")
    if not config.get("use_causal_conv", True):
        raise ConfigError("use_causal_conv=False cannot be streamed: its convolutions look into the future")
    if config.get("trim_right_ratio", 1.0) != 1.0:
        raise ConfigError(
            f"trim_right_ratio={shown(config['trim_right_ratio'])} cannot be streamed: "
            "only 1.0 trims transposed convolutions wholly on the right, which keeps them causal"
        )
    if config.get("audio_channels", 1) != 1:
        raise ConfigError(f"audio_channels={shown(config['audio_channels'])}: the streaming contract is mono only")
    rope_type = _rope_parameters(config).get("rope_type", "default")
    if rope_type != "default":
        raise ConfigError(f"rope_type={shown(rope_type)} is not supported: only 'default' is relative in position")
