"""Store large weights as float16, and widen them to float32 where they are read.

    weight: float32 ──► MatMul          weight: float16 ──► Cast(float32) ──► MatMul
    table:  float32 ──► Gather          table:  float16 ──► Gather ──► Cast(float32)

All arithmetic, every input and every output stay float32: half precision in the arithmetic of this model costs a
third of its codes. A float16 holds magnitudes up to 65504 with 11 significant bits; a weight beyond that is an error
with its name, and weights that vanish (below 2**-25) are counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxconverter_common.float16 import convert_np_to_float16

from mimi_export.errors import GraphError
from mimi_export.passes.rewriting import Builder, float_weights, new_initializer, read_array

FLOAT16_MAX = 65504.0
OVERFLOW = 65520.0  # the least magnitude that rounds to infinity: halfway to the next step


@dataclass
class HalfWeightsResult(ir.passes.PassResult):
    """The new model, and for each weight how many of its values became zero."""

    underflows: dict[str, int] = field(default_factory=dict)


class HalfWeights(ir.passes.FunctionalPass):
    """Store float32 weights in float16.

    Requires: no initializer is float16 yet (a second run would find nothing or half of the weights).
    Ensures: the same inputs and outputs; none of the weights is float32; nothing else changed.
    What it leaves alone: initializers of nested graphs, and those that are a graph input or output themselves.

    Args:
        names: the weights.

    Raises:
        GraphError: a value is not finite or does not fit into float16.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def requires(self, model: ir.Model) -> None:
        """Look for float16 weights."""
        for name, value in model.graph.initializers.items():
            if value.dtype == ir.DataType.FLOAT16:
                raise ir.passes.PreconditionError(
                    f"the weight {name} is float16 already: this graph was converted before; convert its fp32 parent"
                )

    def call(self, model: ir.Model) -> HalfWeightsResult:
        """Convert a copy."""
        model = model.clone()
        underflows = {name: _halve(model.graph, name, value) for name, value in self._chosen(model).items()}
        return HalfWeightsResult(model, bool(underflows), underflows)

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been halved."""
        if left := self._chosen(model):
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed float32")

    def _chosen(self, model: ir.Model) -> dict[str, ir.Value]:
        return {name: value for name, value in float_weights(model).items() if name in self.names}


def to_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to the nearest float16, ties to even.

    Raises:
        GraphError: a value is not finite, or would round to infinity.
    """
    if not np.isfinite(values).all():
        raise GraphError(f"the weight {name} holds {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    peak = float(np.abs(values).max(initial=0.0))
    if peak >= OVERFLOW:
        raise GraphError(
            f"the weight {name} reaches {peak:g}, float16 holds at most {FLOAT16_MAX:g}; keep it in float32"
        )
    # by default the library lifts small values to 1e-7 and clamps large ones to 1e4
    half: NDArray[np.float16] = convert_np_to_float16(values, min_positive_val=0.0, max_finite_val=math.inf)
    return half


def _halve(graph: ir.Graph, name: str, weight: ir.Value) -> int:
    """Replace one weight; how many of its values became zero."""
    values, uses = read_array(weight), list(weight.uses())
    half = to_half(name, values)
    stored = new_initializer(graph, name, half, replaces=weight)
    gathers = [node for node, index in uses if node.op_type == "Gather" and node.domain == "" and index == 0]
    for node in gathers:
        _widen_output(graph, node, stored)
    others = [(node, index) for node, index in uses if node not in gathers or index != 0]
    if others:
        build = Builder()
        wide = _widen(build, stored, f"{name}_float32", weight.shape)
        graph.insert_before(graph[0], build.nodes)
        for node, index in others:
            node.replace_input_with(index, wide)
    return int(np.count_nonzero(values) - np.count_nonzero(half))


def _widen(build: Builder, value: ir.Value, name: str, shape: ir.Shape | None) -> ir.Value:
    wide = build("Cast", [value], name, {"to": int(ir.DataType.FLOAT)}, name)
    wide.shape, wide.type = shape, ir.TensorType(ir.DataType.FLOAT)
    return wide


def _widen_output(graph: ir.Graph, gather: ir.Node, table: ir.Value) -> None:
    """Let `gather` read the float16 table, and its users a float32 copy of what it gives, under the old name."""
    output = gather.outputs[0]
    name = str(output.name)
    gather.replace_input_with(0, table)
    build = Builder()
    wide = _widen(build, output, name, output.shape)
    owner = gather.graph if gather.graph is not None else graph
    for node, index in list(output.uses()):
        if node is not build.nodes[0]:
            node.replace_input_with(index, wide)
    for index, value in enumerate(owner.outputs):
        if value is output:
            owner.outputs[index] = wide
    output.name, output.type = f"{name}_float16", ir.TensorType(ir.DataType.FLOAT16)
    owner.insert_after(gather, build.nodes)
