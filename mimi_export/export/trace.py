"""The one call of `torch.onnx.export`.

It gets an example of 2 rows (with 1 it would fix the rows), 3 frames and a few past tokens, all marked dynamic but for
what the specification fixes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn
from torch.export import Dim

from mimi_export.contract.spec import BATCH, CODEBOOKS, FRAMES, PAST, SAMPLES, GraphSpec
from mimi_export.errors import ConfigError
from mimi_export.model.graphs import StreamingGraph, Tapped

OPSET = 20
EXAMPLE = {BATCH: 2, FRAMES: 3, CODEBOOKS: 3, PAST: 5}
INT64_MAX = 2**63 - 1


def last_first_onnx(x: ir.Value) -> Any:
    """`steps.cache.last_first` in ONNX: slices of nothing are nothing."""
    return op.Concat(op.Slice(x, [-1], [INT64_MAX], [2]), op.Slice(x, [0], [-1], [2]), axis=2)


def write_slots_onnx(ring: ir.Value, places: ir.Value, new: ir.Value) -> Any:
    """`steps.cache.write_slots` in ONNX."""
    return op.ScatterND(ring, places, new)


def onnx_program(module: StreamingGraph, opset: int = OPSET) -> ir.Model:
    """Trace `module`, with its taps as further outputs; raises as `trace` does."""
    tapped = Tapped(module, examples(module.graph))
    return trace(tapped, module.graph, tapped.output_names, module.graph.window_length, opset)


def trace(
    module: nn.Module, graph: GraphSpec, output_names: Sequence[str], most_past: int, opset: int = OPSET
) -> ir.Model:
    """Trace a module into an ONNX model with the names of `graph`.

    Args:
        module: takes the tensors of `graph.inputs`, the states as further positional arguments.
        graph: names, types and free dimensions of the inputs.
        output_names: names of what the module returns.
        most_past: the most past tokens of a window.
        opset: ONNX operator set to write.

    Raises:
        ConfigError: the exporter wrote another opset than the one asked for.
    """
    frames = Dim(FRAMES, min=1, max=2**20)
    dims: dict[str, Any] = {
        BATCH: Dim(BATCH, min=1, max=2**16),
        FRAMES: frames,
        SAMPLES: graph.frame_size * frames,
        CODEBOOKS: Dim(CODEBOOKS, min=1, max=max(2, graph.shape.num_codebooks)),
        PAST: Dim(PAST, min=0, max=most_past),
    }
    shapes = tuple(
        {axis: dims[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)} for tensor in graph.inputs
    )
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            examples(graph),
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=output_names,
            dynamic_shapes=(shapes[0], shapes[1:]),
            custom_translation_table={
                torch.ops.mimi_export.last_first.default: last_first_onnx,
                torch.ops.mimi_export.write_slots.default: write_slots_onnx,
            },
            verbose=False,
            optimize=True,
        )
    if program is None:
        raise ConfigError("torch.onnx.export returned nothing: it needs dynamo=True of torch 2.9 or later")
    model: ir.Model = program.model
    if model.opset_imports.get("") != opset:
        raise ConfigError(f"asked for opset {opset}, the exporter wrote {model.opset_imports.get('')}")
    return model


def examples(graph: GraphSpec) -> tuple[Tensor, ...]:
    """Zeros for every input of a graph."""
    sizes = {
        **EXAMPLE,
        SAMPLES: EXAMPLE[FRAMES] * graph.frame_size,
        CODEBOOKS: min(EXAMPLE[CODEBOOKS], graph.shape.num_codebooks),
        PAST: min(EXAMPLE[PAST], graph.window_length),
    }
    shapes = [[sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape] for tensor in graph.inputs]
    types = [getattr(torch, tensor.dtype) for tensor in graph.inputs]
    return tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True))


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress prints and notes about its own internals from the user's terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
