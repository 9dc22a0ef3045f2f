"""The one place that knows how Hugging Face transformers lays out a Mimi model, and which versions can be trusted.

Upstream has had two layouts with the same names on disk:

    below 5.21    model.encoder, .encoder_transformer, .downsample, .quantizer, .upsample, .decoder_transformer, ...
    from 5.21     model.encoder.{encoder_seanet,encoder_transformer,downsample}, model.quantizer,
                  model.decoder.{upsample,decoder_transformer,decoder_seanet}

The reference functions run upstream's own batch code, untouched: whole clips, no cache, no streaming. They take
whole frames only, because for a partial last frame upstream pads inside every convolution, which no stream can do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import cast

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel
from transformers.utils import logging as transformers_logging

from mimi_export.contract.geometry import Geometry
from mimi_export.errors import AudioError, CheckpointError, CodesError, ConfigError

OLDEST_TRANSFORMERS = "5.3"
NO_DECODER = 'this model is an encoder alone: it has no decoder; export it with --from nothing, or `from = "nothing"`'
CODEBOOK_EPSILON = 1e-5  # the least usage by which upstream divides a codebook entry


@dataclass(frozen=True)
class Parts:
    """The seven modules of a Mimi model in the order in which audio passes them; an encoder alone has no last three."""

    encoder_seanet: nn.Module
    encoder_transformer: nn.Module
    downsample: nn.Module
    quantizer: nn.Module
    upsample: nn.Module | None
    decoder_transformer: nn.Module | None
    decoder_seanet: nn.Module | None


# What the names of each part's tensors begin with on disk, in every version.
DISK_PREFIXES = tuple(field.name.removesuffix("_seanet") + "." for field in fields(Parts))
DECODER_PREFIXES = DISK_PREFIXES[4:]


def check_transformers_version(version: str = transformers.__version__) -> None:
    """Raise `CheckpointError` for a transformers whose Mimi is no correct reference."""
    if Version(version) < Version(OLDEST_TRANSFORMERS):
        raise CheckpointError(
            f"transformers {version} has no sliding attention window in its Mimi, so all that it computes "
            "after 10 s of audio is wrong and there is no correct reference; "
            f"install a newer one: pip install 'transformers>={OLDEST_TRANSFORMERS},<6'"
        )


def parts(model: MimiModel) -> Parts:
    """The modules of `model`, in whichever layout it is.

    Raises:
        ConfigError: the model lacks a part of its encoder, has a decoder in part, or changes no frame rate.
    """
    encoder, decoder = model.encoder, model.decoder
    halves = hasattr(encoder, "encoder_seanet") or hasattr(decoder, "decoder_seanet")
    found = {
        "encoder_seanet": getattr(encoder, "encoder_seanet", None) if halves else encoder,
        "encoder_transformer": getattr(encoder if halves else model, "encoder_transformer", None),
        "downsample": getattr(encoder if halves else model, "downsample", None),
        "quantizer": model.quantizer,
        "upsample": getattr(decoder if halves else model, "upsample", None),
        "decoder_transformer": getattr(decoder if halves else model, "decoder_transformer", None),
        "decoder_seanet": getattr(decoder, "decoder_seanet", None) if halves else decoder,
    }
    missing = [name for name, part in found.items() if part is None]
    if missing and missing != list(found)[4:]:
        raise ConfigError(f"this Mimi model lacks {', '.join(missing)}; a whole encoder is needed, or both halves")
    return Parts(**found)


def has_decoder(model: MimiModel) -> bool:
    """Whether the model is a whole codec; other models use the encoder alone."""
    return parts(model).upsample is not None


def remove_decoder(model: MimiModel) -> None:
    """Take the decoder away from a model, as those have it that use the encoder alone."""
    if not hasattr(model.encoder, "encoder_seanet"):
        model.upsample = model.decoder_transformer = None
    model.decoder = None


def tensors_on_disk(model: MimiModel) -> dict[str, Tensor]:
    """The saved tensors of `model`, live, by their names in `model.safetensors`, which all versions share."""
    found = zip(DISK_PREFIXES, vars(parts(model)).values(), strict=True)
    return {prefix + name: tensor for prefix, part in found if part for name, tensor in part.state_dict().items()}


def config_fields(config: MimiConfig) -> dict[str, object]:
    """The fields of a configuration with the frame rate spelt out, which `to_dict` hides under a private name."""
    return {**config.to_dict(), "frame_rate": config.frame_rate}


def geometry_of(model: MimiModel) -> Geometry:
    """The geometry of a model, checked against the layers that upstream really built from its configuration.

    Raises:
        ConfigError: the model cannot be streamed, or this transformers builds it differently from what it says.
    """
    geometry = Geometry.from_config(config_fields(model.config))
    built = parts(model).downsample.get_submodule("conv")
    stride = built.stride[0] if isinstance(built, nn.Conv1d) else None
    if stride != geometry.latent_stride:
        raise ConfigError(
            f"the configuration's frame rate asks for a downsampling by {geometry.latent_stride}, but transformers "
            f"{transformers.__version__} builds one by {stride}; versions from 5.21 build what is asked"
        )
    return geometry


def clear_codebook_cache(model: MimiModel) -> None:
    """Make upstream compute its codebooks anew: it keeps `embed_sum / cluster_usage` from the first use on."""
    for module in parts(model).quantizer.modules():
        if hasattr(module, "embed_sum"):
            setattr(module, "_embed", None)  # noqa: B010 - no declared attribute of a module


@torch.no_grad()
def encode_latents(model: MimiModel, audio: Tensor) -> Tensor:
    """What the quantiser gets: audio `[B, 1, N]` to latents `[B, hidden_size, N / frame_size]`."""
    _check_audio(model, audio)
    found = parts(model)
    hidden = found.encoder_seanet(audio)
    hidden = found.encoder_transformer(hidden.transpose(1, 2)).last_hidden_state
    latents: Tensor = found.downsample(hidden.transpose(1, 2))
    return latents


@torch.no_grad()
def quantize_latents(model: MimiModel, latents: Tensor, num_codebooks: int) -> Tensor:
    """Latents `[B, hidden_size, T]` to codes int64 `[B, num_codebooks, T]`."""
    geometry_of(model).check_num_codebooks(num_codebooks)
    encode_codes = cast("Callable[[Tensor, int], Tensor]", parts(model).quantizer.encode)
    return encode_codes(latents, num_codebooks).transpose(0, 1)


@torch.no_grad()
def encode(model: MimiModel, audio: Tensor, num_codebooks: int) -> Tensor:
    """`MimiModel.encode` on whole frames: audio `[B, 1, N]` to codes int64 `[B, num_codebooks, N / frame_size]`."""
    _check_audio(model, audio)
    geometry_of(model).check_num_codebooks(num_codebooks)
    codes: Tensor = model.encode(audio, num_quantizers=num_codebooks).audio_codes
    return codes


@torch.no_grad()
def decode(model: MimiModel, codes: Tensor) -> Tensor:
    """`MimiModel.decode`: codes int64 `[B, K, T]` to audio `[B, 1, T · frame_size]`."""
    geometry = geometry_of(model)
    if codes.ndim != 3 or codes.shape[-1] == 0 or codes.dtype != torch.int64:
        raise CodesError(f"codes are {codes.dtype} {list(codes.shape)}, expected int64 [batch, codebooks, frames]")
    geometry.check_num_codebooks(codes.shape[1])
    if not 0 <= int(codes.min()) <= int(codes.max()) < geometry.codebook_size:
        raise CodesError(
            f"codes span {int(codes.min())} to {int(codes.max())}, expected 0 to {geometry.codebook_size - 1}"
        )
    if not has_decoder(model):
        raise ConfigError(NO_DECODER)
    audio: Tensor = model.decode(codes).audio_values
    return audio


@torch.no_grad()
def decode_latents(model: MimiModel, latents: Tensor) -> Tensor:
    """`MimiModel.decode` after its quantiser: latents `[B, hidden_size, T]` to audio `[B, 1, T · frame_size]`."""
    found = parts(model)
    if found.upsample is None or found.decoder_transformer is None or found.decoder_seanet is None:
        raise ConfigError(NO_DECODER)
    hidden = found.upsample(latents)
    hidden = found.decoder_transformer(hidden.transpose(1, 2)).last_hidden_state
    audio: Tensor = found.decoder_seanet(hidden.transpose(1, 2))
    return audio


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from writing progress bars and load reports to the terminal; the caller reports instead."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_audio(model: MimiModel, audio: Tensor) -> None:
    frame_size = geometry_of(model).frame_size
    if audio.ndim != 3 or audio.shape[1] != 1 or audio.shape[2] == 0 or audio.shape[2] % frame_size:
        raise AudioError(
            f"audio has shape {list(audio.shape)}, expected [batch, 1, samples] with a whole number of frames of "
            f"{frame_size} samples"
        )
