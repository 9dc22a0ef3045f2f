"""Store large weights as float16, and widen them to float32 where they are read.

    weight: float32 ──► MatMul          weight: float16 ──► Cast(float32) ──► MatMul
    table:  float32 ──► Gather          table:  float16 ──► Gather ──► Cast(float32)

All arithmetic, every input and every output stay float32: half precision in the arithmetic of this model costs a
third of its codes. A float16 holds magnitudes up to 65504 with 11 significant bits; a weight beyond that is an error
with its name, and weights that vanish (below 2**-25) are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.errors import GraphError
from mimi_export.passes.weights import float_weights, matches, new_initializer

FLOAT16_MAX = 65504.0
MIN_ELEMENTS = 1024


@dataclass(frozen=True)
class HalvedWeight:
    """What became of one weight: how many values of how many vanished, and the greatest change of one."""

    name: str
    elements: int
    underflows: int
    max_abs_error: float


@dataclass
class HalfWeightsResult(ir.passes.PassResult):
    """The new model and what was done to each weight."""

    weights: tuple[HalvedWeight, ...] = ()


class HalfWeights(ir.passes.FunctionalPass):
    """Store float32 weights of at least `min_elements` in float16.

    Requires: no initializer is float16 yet (a second run would find nothing or half of the weights).
    Ensures: the same inputs and outputs; no float32 weight of that size but those to keep; nothing else changed.
    What it leaves alone: initializers of nested graphs, and those that are a graph input or output themselves.

    Args:
        keep: patterns (`fnmatch`) of names that stay float32.
        min_elements: smaller weights stay float32; biases and norms are nearly nothing of the size.

    Raises:
        GraphError: a value is not finite or does not fit into float16.
    """

    def __init__(self, keep: Sequence[str] = (), min_elements: int = MIN_ELEMENTS) -> None:
        super().__init__()
        self.keep = tuple(keep)
        self.min_elements = min_elements

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
        weights = [self._halve(model.graph, value) for value in self._chosen(model)]
        return HalfWeightsResult(model, bool(weights), tuple(weights))

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been halved."""
        left = [str(value.name) for value in self._chosen(model)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed float32")

    def _chosen(self, model: ir.Model) -> list[ir.Value]:
        return [value for value in float_weights(model, self.min_elements) if not matches(str(value.name), self.keep)]

    def _halve(self, graph: ir.Graph, weight: ir.Value) -> HalvedWeight:
        name, uses = str(weight.name), list(weight.uses())
        values = weight.const_value.numpy() if weight.const_value is not None else np.zeros(0, np.float32)
        half = to_half(name, values)
        error = float(np.abs(values - half.astype(np.float32)).max(initial=0.0))
        underflows = int(np.count_nonzero(values) - np.count_nonzero(half))
        new_initializer(graph, name, half, replaces=weight)
        stored = graph.initializers[name]
        gathers = [node for node, index in uses if node.op_type == "Gather" and node.domain == "" and index == 0]
        for node in gathers:
            _widen_output(graph, node, stored)
        others = [(node, index) for node, index in uses if node not in gathers or index != 0]
        if others:
            wide = _cast(stored, f"{name}_float32", weight.shape)
            graph.insert_before(graph[0], wide)
            for node, index in others:
                node.replace_input_with(index, wide.outputs[0])
        return HalvedWeight(name, values.size, underflows, error)


def to_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to the nearest float16, ties to even.

    Raises:
        GraphError: a value is not finite, or would round to infinity.
    """
    if not np.isfinite(values).all():
        raise GraphError(f"the weight {name} holds {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise GraphError(
            f"the weight {name} reaches {np.abs(values).max():g}, float16 holds at most {FLOAT16_MAX:g}; "
            "keep it in float32"
        )
    return half


def _cast(value: ir.Value, name: str, shape: ir.Shape | None) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    return node


def _widen_output(graph: ir.Graph, gather: ir.Node, table: ir.Value) -> None:
    """Let `gather` read the float16 table, and its users a float32 copy of what it gives, under the old name."""
    output = gather.outputs[0]
    name, shape = str(output.name), output.shape
    gather.replace_input_with(0, table)
    cast = _cast(output, name, shape)
    wide = cast.outputs[0]
    owner = gather.graph if gather.graph is not None else graph
    for node, index in list(output.uses()):
        if node is not cast:
            node.replace_input_with(index, wide)
    for index, value in enumerate(owner.outputs):
        if value is output:
            owner.outputs[index] = wide
    output.name, output.type = f"{name}_float16", ir.TensorType(ir.DataType.FLOAT16)
    owner.insert_after(gather, cast)
