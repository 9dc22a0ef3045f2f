"""How to convert a variant to a lower precision, and which weights the patterns of such options mean.

A pattern is shell-like and fits names of weights (`layers.*.fc2`); `encoder:` or `decoder:` before it limits it to one
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ConfigError
from mimi_export.passes.int8_block import BLOCK_SIZES
from mimi_export.passes.weights import float_weights, matches

TARGETS = ("portable", "single")
CODEBOOKS = "encoder:*.codebooks.*"
# Half the squared lengths of the codebooks' entries, and a matrix that only moves numbers.
ALWAYS_FLOAT = ("encoder:*.offsets.*", "half_swap")
# Convolutions and the quantiser's projections lose most by 8-bit activations, and have few products.
FINE = ("convs.*", "*.projection")
# A weight smaller than this share of its graph is not worth its rounding: all of them together are 1 % of the size, and
# they belong to the convolutions next to the waveform, which are applied most often and lose most by 8 bits.
SMALL_SHARE = 400

Target = Literal["portable", "single"]


@dataclass(frozen=True)
class Fp16Options:
    """`keep`: patterns of weights that stay float32 (see `patterns_for`)."""

    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Int8Options:
    """How to convert to 8 bits.

    Attributes:
        target: `portable` (`MatMulInteger`: any onnxruntime, WebAssembly) or `single` (`MatMulNBits`: one
            stream on a processor, onnxruntime 1.22 or later).
        block_size: weights with one scale, for `single`.
        bits: 8, or 4 with `single` as an experiment.
        keep: patterns of weights that stay float32.
        fine: patterns of products whose activations get 16 bits, at no cost in size.
        store: patterns of weights that are only stored in 8 bits and computed as float32.
        signed: with `MatMulInteger`, store weights as int8 instead of uint8: up to twice as fast on processors with
            VNNI or AMX and on ARM, but wrong on x86 processors without VNNI, which saturate sums of two products.
        codebooks: search the encoder's codebooks in 8 bits as well: smaller and faster, at about one code in a hundred.
        min_elements: weights with fewer stay float32; a 400th of the graph's unless given.
    """

    target: Target = "portable"
    block_size: int = 64
    bits: int = 8
    keep: tuple[str, ...] = ()
    fine: tuple[str, ...] = FINE
    store: tuple[str, ...] = ()
    signed: bool = False
    codebooks: bool = False
    min_elements: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no pass can do."""
        if self.target not in TARGETS:
            raise ConfigError(f"target is {self.target!r}, expected one of {', '.join(TARGETS)}")
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"block size is {self.block_size}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.bits not in (4, 8) or (self.bits == 4 and self.target != "single"):
            raise ConfigError(f"bits is {self.bits} for target {self.target}, expected 8, or 4 with target single")
        if self.min_elements is not None and self.min_elements < 0:
            raise ConfigError(f"min_elements is {self.min_elements}, expected 0 or more")


Options = Fp16Options | Int8Options


def kept_float(options: Options) -> tuple[str, ...]:
    """Patterns of what stays float32."""
    rounds = isinstance(options, Int8Options) and options.codebooks
    return (*ALWAYS_FLOAT, *(() if rounds else (CODEBOOKS,)), *options.keep)


def patterns_for(kind: GraphKind, patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns that hold for one graph; `encoder:` or `decoder:` before a pattern limits it to that graph."""
    found = []
    for pattern in patterns:
        graph, colon, rest = pattern.partition(":")
        if not colon or graph == kind:
            found.append(rest if colon else pattern)
    return tuple(found)


def fewest_elements(model: ir.Model, options: Options) -> int:
    """What a weight of a graph must have at least, to be worth its rounding: a 400th of all, unless the options say."""
    if isinstance(options, Int8Options) and options.min_elements is not None:
        return options.min_elements
    total = sum(value.const_value.size for value in float_weights(model) if value.const_value is not None)
    return total // SMALL_SHARE


def check_patterns(models: dict[GraphKind, ir.Model], options: Options) -> None:
    """Raise `ConfigError` for a pattern of the options that fits no weight of any graph."""
    names = {kind: [str(value.name) for value in float_weights(model)] for kind, model in models.items()}
    lists = [options.keep] if isinstance(options, Fp16Options) else [options.keep, options.fine, options.store]
    for pattern in (pattern for patterns in lists for pattern in patterns):
        if not any(matches(name, patterns_for(kind, [pattern])) for kind in names for name in names[kind]):
            raise ConfigError(
                f"no weight is called {pattern!r}; names look like layers.0.fc1, convs.enc_0.weight or "
                "decoder:acoustic.table, and * stands for anything"
            )
