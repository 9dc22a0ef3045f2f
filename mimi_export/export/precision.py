"""Which form each weight of a graph takes in a variant of lower precision.

The patterns of the options are resolved here, once; passes are told names.
"""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from mimi_export.contract.precision import Int8Options, Options, patterns_for
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ConfigError
from mimi_export.passes.int8_codebooks import find_codebooks
from mimi_export.passes.rewriting import find_matmuls, float_weights, matches, read_array

# Half the squared lengths of the codebooks' entries, and a matrix that only moves numbers.
ALWAYS_FLOAT = ("encoder:*.offsets.*", "half_swap")
# Rounded entries would be found in another order; the search sees what was fitted, unless asked for otherwise.
CODEBOOKS = "encoder:*.codebooks.*"
# A weight smaller than this share of its graph is not worth its rounding: all of them together are 1 % of the size, and
# they belong to the convolutions next to the waveform, which are applied most often and lose most by 8 bits.
SMALL_SHARE = 400

Form = Literal["float32", "float16", "int8", "codebook"]  # a codebook is an int8 matrix that is read by rows as well
Forms = dict[str, Form]


def weight_forms(model: ir.Model, kind: GraphKind, options: Options) -> Forms:
    """The form of every float32 weight of a graph, by name."""
    weights = {name: read_array(value).size for name, value in float_weights(model).items()}
    fewest = sum(weights.values()) // SMALL_SHARE
    kept, books = patterns_for(kind, (*ALWAYS_FLOAT, *options.keep_float)), patterns_for(kind, (CODEBOOKS,))
    forms: Forms = dict.fromkeys(weights, "float32")
    large = [name for name, size in weights.items() if size >= fewest and not matches(name, (*kept, *books))]
    forms |= dict.fromkeys(large, "float16")
    if isinstance(options, Int8Options):
        matmuls = find_matmuls(model)
        forms |= dict.fromkeys((name for name in large if name in matmuls), "int8")
        if options.round_codebooks:
            found = [name for name in find_codebooks(model) if matches(name, books) and not matches(name, kept)]
            forms |= dict.fromkeys(found, "codebook")
    return forms


def check_patterns(models: dict[GraphKind, ir.Model], options: Options) -> None:
    """Raise `ConfigError` for a pattern of the options that fits no weight of any graph."""
    names = {kind: list(float_weights(model)) for kind, model in models.items()}
    for pattern in options.keep_float:
        if not any(matches(name, patterns_for(kind, [pattern])) for kind in names for name in names[kind]):
            raise ConfigError(
                f"no weight is called {pattern!r}; names look like layers.0.fc1, convs.enc_0.weight or "
                "decoder:acoustic.table, and * stands for anything"
            )
