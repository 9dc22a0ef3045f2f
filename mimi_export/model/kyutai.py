"""The same weights under Kyutai's own names, as `moshi` and `rustymimi` read them and Moshi's users train them.

Hugging Face stores Mimi with other names and another order of some rows than the file that Kyutai published
(`tokenizer-e351c8d8-checkpoint125.safetensors`). This module goes from the first to the second, so that Kyutai's own
two implementations can run any checkpoint of ours: they are the second, independent oracle and two contenders of the
benchmark; and back, so that files in Kyutai's names can be exported. It is a dictionary in and a dictionary out;
nothing is computed, only renamed, stacked and reordered.

What differs between the two files:

    convolutions       layers.3.conv            -> model.3.conv.conv, a transposed one -> model.3.convtr.convtr
    attention          q_proj, k_proj, v_proj   -> in_proj_weight, the three stacked
    rows of q and k    halves                   -> pairs (see `interleave_heads`)
    codebooks          semantic…, acoustic…     -> rvq_first, rvq_rest; embed_sum -> embedding_sum
    everything else    a name for a name
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MimiModel

from mimi_export.contract.files import atomic_file
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.network import ConvLayer, decoder_seanet, encoder_seanet, walk_convs
from mimi_export.errors import CheckpointError, some
from mimi_export.model import upstream
from mimi_export.model.upstream import DECODER_PREFIXES

KYUTAI_MARK = "quantizer.rvq_first.input_proj.weight"  # a name that every file of Kyutai's has
_LAYER_NAMES = {
    "input_layernorm.weight": "norm1.weight",
    "input_layernorm.bias": "norm1.bias",
    "post_attention_layernorm.weight": "norm2.weight",
    "post_attention_layernorm.bias": "norm2.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc2.weight": "linear2.weight",
    "self_attn.o_proj.weight": "self_attn.out_proj.weight",
    "self_attn_layer_scale.scale": "layer_scale_1.scale",
    "mlp_layer_scale.scale": "layer_scale_2.scale",
}
_CODEBOOK_NAMES = {
    "codebook.embed_sum": "_codebook.embedding_sum",
    "codebook.cluster_usage": "_codebook.cluster_usage",
    "codebook.initialized": "_codebook._initialized",
}
_RATE_NAMES = {
    "downsample.conv.weight": "downsample.conv.conv.conv.weight",
    "upsample.conv.weight": "upsample.convtr.convtr.convtr.weight",
}


@dataclass(frozen=True)
class Rename:
    """One tensor of Kyutai's file: `name` is made by `combine` from the Hugging Face tensors called `sources`.

    `separate` undoes it.
    """

    name: str
    sources: tuple[str, ...]
    combine: Callable[..., Tensor] = lambda tensor: tensor
    separate: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: [tensor]


def interleave_heads(weight: Tensor, head_dim: int, back: bool = False) -> Tensor:
    """Reorder the rows of a query or key projection from Hugging Face's rotary convention to Kyutai's.

    Both rotate the pair of features that belongs to frequency `d` by the same angle; they only keep it in
    different places of a head. With half = head_dim / 2:

        Hugging Face   d and half + d    [r0 r1 r2 … | i0 i1 i2 …]
        Kyutai         2d and 2d + 1     [r0 i0 r1 i1 r2 i2 …]

    Law: `out[h·head_dim + 2d + j] = weight[h·head_dim + j·half + d]` for j in 0, 1. Attention is unchanged, because
    queries and keys move alike.

    Args:
        weight: `[heads · head_dim, hidden]`.
        head_dim: features of one head; even.
        back: from Kyutai's convention to Hugging Face's.
    """
    rows, columns = weight.shape
    sizes = (head_dim // 2, 2) if back else (2, head_dim // 2)
    return weight.reshape(rows // head_dim, *sizes, columns).transpose(1, 2).reshape(rows, columns)


def renames(geometry: Geometry) -> list[Rename]:
    """Every tensor of Kyutai's file for a model of this geometry, and what it is made of; no source is used twice."""
    table = [Rename(new, (old,)) for old, new in _RATE_NAMES.items()]
    for part, items in (("encoder", encoder_seanet(geometry)), ("decoder", decoder_seanet(geometry))):
        table += _seanet(part, walk_convs(items))
        table += _transformer(f"{part}_transformer", geometry)
    semantic = geometry.num_semantic_quantizers
    table += _quantizer("semantic", "rvq_first", semantic)
    table += _quantizer("acoustic", "rvq_rest", geometry.num_quantizers - semantic)
    return table


def kyutai_state_dict(state: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
    """The weights under Kyutai's names.

    Args:
        state: the tensors of a Hugging Face `model.safetensors`, under the names on disk
            (`upstream.tensors_on_disk` gives them for a loaded model).
        geometry: sizes of the model.

    Returns:
        New names, with tensors of the same dtype; a tensor that is only renamed is not copied.

    Raises:
        CheckpointError: a tensor is missing, or Kyutai's format has no place for it.
    """
    table = renames(geometry)
    wanted = {source for rename in table for source in rename.sources}
    _refuse("lacks", "without which it is no whole Mimi model of this geometry", wanted - state.keys())
    _refuse("has", "which Kyutai's format has no place for", state.keys() - wanted)
    return {rename.name: rename.combine(*(state[source] for source in rename.sources)) for rename in table}


def huggingface_state_dict(state: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
    """The inverse of `kyutai_state_dict`: the tensors of a file in Kyutai's names under those of `model.safetensors`.

    A file without any tensor of the decoder is an encoder alone, and stays one.

    Raises:
        CheckpointError: a tensor is missing, is not part of a Mimi model of this geometry, or has a shape that
            cannot be reordered.
    """
    table = renames(geometry)
    if not any(name.startswith(DECODER_PREFIXES) for name in state):
        table = [rename for rename in table if not rename.name.startswith(DECODER_PREFIXES)]
    wanted = {rename.name for rename in table}
    _refuse("lacks", "without which it is no whole Mimi model of this geometry", wanted - state.keys())
    _refuse("has", "for which a Mimi model of this geometry has no place", state.keys() - wanted)
    converted: dict[str, Tensor] = {}
    for rename in table:
        tensor = state[rename.name]
        try:
            parts = rename.separate(tensor)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"cannot split {rename.name} of shape {list(tensor.shape)}: it does not fit the model's geometry"
            ) from error
        converted |= zip(rename.sources, parts, strict=True)
    return converted


def save_kyutai(model: MimiModel, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write the weights of `model` as the safetensors file that `moshi` and `rustymimi` load, whole or not at all.

    Both programs have Kyutai's own geometry built in and load no other.

    Args:
        model: a Mimi model in any layout of transformers.
        path: the file to write.
        force: replace a file that is already there.

    Raises:
        CheckpointError: as `kyutai_state_dict`.
        OutputError: the file exists or cannot be written.
    """
    converted = kyutai_state_dict(upstream.tensors_on_disk(model), upstream.geometry_of(model))
    with atomic_file(path, force) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in converted.items()}, temporary)


def _seanet(part: str, layers: Iterable[ConvLayer]) -> Iterator[Rename]:
    for layer in layers:
        new = layer.path.removesuffix(".conv").replace("layers.", "model.", 1)
        new += ".convtr.convtr" if layer.transposed else ".conv.conv"
        for word in ("weight", "bias") if layer.bias else ("weight",):
            yield Rename(f"{part}.{new}.{word}", (f"{part}.{layer.path}.{word}",))


def _transformer(part: str, geometry: Geometry) -> Iterator[Rename]:
    def fuse(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rotated = [interleave_heads(weight, geometry.head_dim) for weight in (query, key)]
        return torch.cat([*rotated, value])

    def separate(fused: Tensor) -> list[Tensor]:
        heads, groups = geometry.num_attention_heads, geometry.num_key_value_heads
        query, key, value = torch.split(fused, [size * geometry.head_dim for size in (heads, groups, groups)])
        return [*(interleave_heads(weight, geometry.head_dim, back=True) for weight in (query, key)), value]

    for index in range(geometry.num_hidden_layers):
        old, new = f"{part}.layers.{index}", f"{part}.transformer.layers.{index}"
        sources = tuple(f"{old}.self_attn.{letter}_proj.weight" for letter in "qkv")
        yield Rename(f"{new}.self_attn.in_proj_weight", sources, fuse, separate)
        for old_name, new_name in _LAYER_NAMES.items():
            yield Rename(f"{new}.{new_name}", (f"{old}.{old_name}",))


def _quantizer(old_word: str, new_word: str, levels: int) -> Iterator[Rename]:
    old, new = f"quantizer.{old_word}_residual_vector_quantizer", f"quantizer.{new_word}"
    for name in ("input_proj.weight", "output_proj.weight"):
        yield Rename(f"{new}.{name}", (f"{old}.{name}",))
    for level in range(levels):
        for old_name, new_name in _CODEBOOK_NAMES.items():
            yield Rename(f"{new}.vq.layers.{level}.{new_name}", (f"{old}.layers.{level}.{old_name}",))


def _refuse(what: str, reason: str, names: Iterable[str]) -> None:
    """Raise `CheckpointError` if there are `names`."""
    found = list(names)
    if found:
        tensors = "tensor" if len(found) == 1 else "tensors"
        raise CheckpointError(f"the checkpoint {what} {len(found)} {tensors} ({some(found)}), {reason}")
