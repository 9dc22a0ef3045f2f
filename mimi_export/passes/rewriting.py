"""What every pass needs: which initializers are weights, where a graph multiplies with one, how to put in nodes."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

SCALES = ".scales"  # ends the name of what a rounded weight is multiplied with


def float_weights(model: ir.Model) -> dict[str, ir.Value]:
    """Float32 initializers by name, which some node reads and which no client can see or replace."""
    inputs = set(model.graph.inputs)
    return {
        name: value
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT
        and value.const_value is not None
        and value not in inputs
        and not value.is_graph_output()
        and value.uses()
    }


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether `name` fits any of the shell-like patterns (`layers.*.fc2`)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def new_initializer(graph: ir.Graph, name: str, array: NDArray[Any], replaces: ir.Value | None = None) -> ir.Value:
    """Register a weight; `replaces` first leaves the graph's list, and its readers are the caller's to move."""
    if replaces is not None:
        graph.initializers.pop(str(replaces.name))
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def read_array(value: ir.Value) -> NDArray[Any]:
    """The content of an initializer."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no content")
    array: NDArray[Any] = value.const_value.numpy()
    return array


def given(value: ir.Value | None) -> ir.Value:
    """An input that every node of its kind has."""
    if value is None:
        raise ValueError("an input that every such node has is missing")
    return value


def require_opset(model: ir.Model, oldest: int) -> None:
    """Raise `PreconditionError` for a graph of an older operator set."""
    opset = model.opset_imports.get("", 0)
    if opset < oldest:
        raise ir.passes.PreconditionError(f"the graph has opset {opset}, expected {oldest} or later")


class Builder:
    """Collects new nodes; an output is called `<node>.output` unless it is given a name."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __call__(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        output: str | None = None,
    ) -> ir.Value:
        """Add a node with one output, which is returned."""
        return self.add(op_type, inputs, name, attributes, (output or f"{name}.output",))[0]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, Any] | None,
        outputs: Sequence[str],
    ) -> Sequence[ir.Value]:
        """Add a node with outputs of these names."""
        node = ir.node(op_type, list(inputs), attributes or {}, num_outputs=len(outputs), name=name)
        for value, output in zip(node.outputs, outputs, strict=True):
            value.name = output
        self.nodes.append(node)
        return node.outputs

    def replace(self, graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
        """Put the new nodes where `node` was; `result` takes over the name and the readers of its one output."""
        output = node.outputs[0]
        result.name, result.type, result.shape = output.name, output.type, output.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], self.nodes, [output], [result])


@dataclass(frozen=True)
class Matmul:
    """`y = x @ weight` (plus a bias): a `MatMul`, or a `Gemm` that is nothing more than that."""

    node: ir.Node
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None

    @property
    def x(self) -> ir.Value:
        """The activations `[…, in]`."""
        return given(self.node.inputs[0])

    def matrix(self) -> NDArray[np.float32]:
        """The weights `[in, out]`."""
        matrix: NDArray[np.float32] = read_array(self.weight)
        return np.ascontiguousarray(matrix.T) if self.transposed else matrix


def find_matmuls(model: ir.Model) -> dict[str, Matmul]:
    """Products with a constant float32 matrix by its name, in the graph's order.

    A matrix that a second node reads does not count: its float32 form would have to stay.
    """
    weights = float_weights(model)
    found = {}
    for node in model.graph:
        if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
            weight = given(node.inputs[1])
            name = str(weight.name)
            if weights.get(name) is weight and len(weight.uses()) == 1 and len(read_array(weight).shape) == 2:
                matmul = _matmul(node, weight)
                if matmul is not None:
                    found[name] = matmul
    return found


def _matmul(node: ir.Node, weight: ir.Value) -> Matmul | None:
    if node.op_type == "MatMul":
        return Matmul(node, weight, False, None)
    if not is_plain_gemm(node):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Matmul(node, weight, node.attributes.get_int("transB", 0) == 1, bias)


def is_plain_gemm(node: ir.Node) -> bool:
    """Whether a `Gemm` neither scales nor transposes its first factor."""
    numbers = node.attributes
    return bool(
        numbers.get_float("alpha", 1.0) == numbers.get_float("beta", 1.0) == 1.0 and numbers.get_int("transA", 0) == 0
    )
