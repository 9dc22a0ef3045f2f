"""A proof that a graph's integer products are the same on every processor.

Kernels of x86 processors without VNNI multiply unsigned activations with signed weights and add the products of inputs
2k and 2k + 1 in 16 bits, where a sum beyond -32768 … 32767 saturates: the graph then computes something else than on
other processors, and says nothing. So every `MatMulInteger` of a file is looked at: what its activations can reach by
the nodes that round them, times what two neighbouring weights of one sign reach together.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mimi_export.contract.directory import Artifact
from mimi_export.errors import GraphError
from mimi_export.runtime.graph_file import FileNode, GraphFile

LARGEST_SUM = 2**15 - 1
UINT8_MAX = 255
INT8_REACH = 128

Array = npt.NDArray[Any]


def check_artifact(artifact: Artifact) -> None:
    """The graphs of a variant; errors as for `check_integers`."""
    for kind in artifact.manifest.shape.kinds:
        check_integers(artifact.graph_path(kind))


def check_integers(path: Path) -> int:
    """How many integer products a file has; all of them fit.

    Raises:
        GraphError: a sum of two products may leave 16 bits, or the weights cannot be read.
    """
    graph = GraphFile(path)
    products = _products(graph)
    for node in products:
        weight = _weight(graph, node.inputs[1])
        if weight is None:
            raise GraphError(f"{path}: the integers that {node.name} multiplies with are no weight of the file")
        reach = largest_code(graph, node.inputs[0]) * neighbours(weight)
        if weight.dtype == np.int8 and reach > LARGEST_SUM:
            raise GraphError(
                f"{path}: two products of {node.name} add up to {reach}, and processors without VNNI stop at "
                f"{LARGEST_SUM}: the graph is wrong there; convert its fp32 parent again"
            )
    return len(products)


def may_saturate(path: Path) -> bool:
    """Whether int8 weights exist with which some product would; a look at the nodes alone, in hundredths of a second.

    Raises:
        GraphError: the file cannot be read.
    """
    graph = GraphFile(path)
    codes = (largest_code(graph, node.inputs[0]) for node in _products(graph))
    return any(code * 2 * INT8_REACH > LARGEST_SUM for code in codes)


def neighbours(weight: Array) -> int:
    """The largest sum of the magnitudes of weights `[in, out]` 2k and 2k + 1 of a column that have the same sign."""
    padded = np.pad(weight.astype(np.int16), ((0, weight.shape[0] % 2), (0, 0)))
    signs = (np.maximum(padded, 0), np.maximum(-padded, 0))
    return max(int((sign[0::2] + sign[1::2]).max(initial=0)) for sign in signs)


def largest_code(graph: GraphFile, name: str) -> int:
    """What an unsigned 8-bit value of the graph reaches at most."""
    node = graph.nodes.get(name)
    if node is not None and node.op_type == "Concat":
        return max(largest_code(graph, part) for part in node.inputs)
    if node is not None and node.op_type == "QuantizeLinear":
        steps, zero = _steps(graph, node)
        return UINT8_MAX if math.isinf(steps) else min(UINT8_MAX, round(steps) + zero)
    return UINT8_MAX


def _products(graph: GraphFile) -> list[FileNode]:
    return [node for node in dict.fromkeys(graph.nodes.values()) if node.op_type == "MatMulInteger"]


def _steps(graph: GraphFile, node: FileNode) -> tuple[float, int]:
    """How many steps of its rounding a value reaches on either side, and the code of zero."""
    scale, zero = (graph.weight(part) for part in node.inputs[1:3]) if len(node.inputs) == 3 else (None, None)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return math.inf, 0
    return _magnitude(graph, node.inputs[0]) / scale.item(), zero.item()


def _magnitude(graph: GraphFile, name: str) -> float:
    """What a float value reaches: 1 after a division by its own largest magnitude, half a step after a rounding."""
    node = graph.nodes.get(name)
    if node is not None and node.op_type == "Div":
        peak = _inputs_of(graph, node.inputs[1], "Max")
        reach = _inputs_of(graph, peak[0], "ReduceMax") if peak else ()
        magnitude = _inputs_of(graph, reach[0], "Abs") if reach else ()
        return 1.0 if magnitude == node.inputs[:1] else math.inf
    if node is not None and node.op_type == "Sub":
        back = _inputs_of(graph, node.inputs[1], "DequantizeLinear")
        there = graph.nodes.get(back[0]) if back else None
        if there and there.op_type == "QuantizeLinear" and there.inputs == (node.inputs[0], *back[1:]):
            steps, zero = _steps(graph, there)
            if steps <= min(zero, UINT8_MAX - zero) + 0.25:  # no end of the codes is reached
                return _magnitude(graph, node.inputs[0]) / steps / 2
    return math.inf


def _inputs_of(graph: GraphFile, name: str, op_type: str) -> tuple[str, ...]:
    """Inputs of the node that makes a value; none where it is another operator."""
    node = graph.nodes.get(name)
    return node.inputs if node is not None and node.op_type == op_type else ()


def _weight(graph: GraphFile, name: str) -> Array | None:
    """A weight `[in, out]`, which the graph may keep as `[out, in]` before a `Transpose`."""
    before = _inputs_of(graph, name, "Transpose")
    weight = graph.weight(before[0] if before else name)
    return weight if weight is None or not before else weight.T
