"""How a variant of lower precision is made: the options of a conversion.

A field's name is the word for it everywhere: `--keep-float` on the command line, `keep_float` in a recipe. What a
manifest records is written out in `record`, so that renaming a field here changes no published file.

A pattern is shell-like and fits names of weights (`layers.*.fc2`); `encoder:` or `decoder:` before it limits it to one
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ConfigError

# Convolutions and the quantiser's projections lose most by 8-bit activations, and have few products.
FINE = ("convs.*", "*.projection")
KEEP_FLOAT = "Weights to leave in float32, by name (`decoder:*.projection`); may be given several times."


def option(default: Any, help_text: str, metavar: str | None = None) -> Any:
    """A field with what the command line says of it."""
    return field(default=default, metadata={"help": help_text, "metavar": metavar})


@dataclass(frozen=True)
class Fp16Options:
    """Weights as float16, arithmetic in float32."""

    precision: ClassVar[str] = "fp16"
    keep_float: tuple[str, ...] = option((), KEEP_FLOAT, "PATTERN")

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {"precision": "fp16", "keep_float": list(self.keep_float)}


@dataclass(frozen=True)
class Int8Options:
    """Products of 8-bit integers; what is left of large weights as float16.

    Raises:
        ConfigError: a value is out of range.
    """

    precision: ClassVar[str] = "int8"
    keep_float: tuple[str, ...] = option((), KEEP_FLOAT, "PATTERN")
    fine: tuple[str, ...] = option(
        FINE,
        "Products whose activations get 16 bits, at no cost in size [default: convs.* and *.projection; '*' is the "
        "most accurate].",
        "PATTERN",
    )
    signed: bool = option(
        False,
        "int8 instead of uint8 weights for MatMulInteger: faster with VNNI or AMX and on ARM, but x86 processors "
        "without VNNI then saturate and give wrong results.",
    )
    round_codebooks: bool = option(
        False, "Search the encoder's codebooks in 8 bits as well: 12 MiB less, a little faster, about 1 of 100 codes."
    )
    min_elements: int | None = option(
        None, "Leave weights with fewer elements in float32 [default: a 400th of the graph]; 0 for none.", "N"
    )

    def __post_init__(self) -> None:
        """Compare with what the passes can do."""
        if self.min_elements is not None and self.min_elements < 0:
            raise ConfigError(f"min_elements is {self.min_elements}, expected 0 or more")

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "precision": "int8",
            "keep_float": list(self.keep_float),
            "fine": list(self.fine),
            "signed": self.signed,
            "round_codebooks": self.round_codebooks,
            "min_elements": self.min_elements,
        }


Options = Fp16Options | Int8Options
PRECISIONS: dict[str, type[Options]] = {"fp16": Fp16Options, "int8": Int8Options}


def patterns_for(kind: GraphKind, patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns that hold for one graph; `encoder:` or `decoder:` before a pattern limits it to that graph."""
    split = [(graph, rest) if colon else ("", graph) for graph, colon, rest in (p.partition(":") for p in patterns)]
    return tuple(rest for graph, rest in split if graph in ("", kind))
