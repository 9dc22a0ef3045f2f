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
    """Products of 8-bit integers; what is left of large weights as float16."""

    precision: ClassVar[str] = "int8"
    keep_float: tuple[str, ...] = option((), KEEP_FLOAT, "PATTERN")
    round_codebooks: bool = option(
        False, "Search the encoder's codebooks in 8 bits as well: 12 MiB less, a little faster, about 1 of 100 codes."
    )
    calibrate: tuple[str, ...] = option(
        (),
        "Recordings to round weights by; may be given several times [default: a minute of generated speech].",
        "FILE",
    )

    def record(self) -> dict[str, Any]:
        """For the manifest; the calibration is recorded by what was heard."""
        return {"precision": "int8", "keep_float": list(self.keep_float), "round_codebooks": self.round_codebooks}


Options = Fp16Options | Int8Options
PRECISIONS: dict[str, type[Options]] = {"fp16": Fp16Options, "int8": Int8Options}


def patterns_for(kind: GraphKind, patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns that hold for one graph; `encoder:` or `decoder:` before a pattern limits it to that graph."""
    split = [(graph, rest) if colon else ("", graph) for graph, colon, rest in (p.partition(":") for p in patterns)]
    return tuple(rest for graph, rest in split if graph in ("", kind))
