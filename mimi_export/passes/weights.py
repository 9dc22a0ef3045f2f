"""What passes over weights share: which initializers are weights, and how to put others in their place."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

SCALES = ".scales"  # ends the name of what a rounded weight is multiplied with; passes leave these alone


def float_weights(model: ir.Model, min_elements: int = 0) -> list[ir.Value]:
    """Float32 initializers of at least `min_elements` that some node reads and that no client can see or replace."""
    graph = model.graph
    inputs = set(graph.inputs)
    return [
        value
        for value in graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT
        and value.const_value is not None
        and value.const_value.size >= min_elements
        and value not in inputs
        and not value.is_graph_output()
        and value.uses()
    ]


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
