"""Weights that are stored in 8 bits and multiplied as float32.

    weight: int8 ──► Cast(float32) ──► Mul(scale) ──► Conv            folded into a float32 weight at load
    table:  int8 ──► Gather ──► Cast(float32) ──► Mul(Gather(scales))  only the rows that are read become floats

`DequantizeLinear` would say the same, but before a convolution onnxruntime computes it in every call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mimi_export.passes.int8_products import RoundedResult, RoundedWeight, snr_db
from mimi_export.passes.int8_rounding import round_groups
from mimi_export.passes.weights import SCALES, float_weights, matches, new_initializer, read_array

MIN_ELEMENTS = 1024
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gather": 0, "MatMul": 1}


class StoredWeights(ir.passes.FunctionalPass):
    """Store float32 weights of convolutions, products and tables as int8 with a scale for each output channel or row.

    Requires: no int8 weight that is widened by `Cast` yet.
    Ensures: the same inputs, outputs and arithmetic; every chosen weight is int8.
    What it leaves alone: weights with several readers, readers other than `Conv`, `ConvTranspose`, `MatMul` (as the
        second factor) and `Gather` (rows), small weights.

    Args:
        select: patterns of weight names; all by default.
        keep: patterns of names to leave; they win over `select`.
        min_elements: smaller weights are left.
    """

    def __init__(
        self, select: Sequence[str] = ("*",), keep: Sequence[str] = (), min_elements: int = MIN_ELEMENTS
    ) -> None:
        super().__init__()
        self.select, self.keep, self.min_elements = tuple(select), tuple(keep), min_elements

    def requires(self, model: ir.Model) -> None:
        """Look for an earlier run."""
        for node in model.graph:
            weight = node.inputs[0] if node.op_type in ("Cast", "Gather") and node.inputs else None
            if weight is not None and weight.is_initializer() and weight.dtype == ir.DataType.INT8:
                raise ir.passes.PreconditionError(
                    f"the weight {weight.name} is stored as int8 already: this graph was converted before; "
                    "convert its fp32 parent"
                )

    def call(self, model: ir.Model) -> RoundedResult:
        """Convert a copy."""
        model = model.clone()
        weights = tuple(self._store(model.graph, value) for value in self._chosen(model))
        return RoundedResult(model, bool(weights), weights)

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been stored."""
        left = [str(value.name) for value in self._chosen(model)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed float32")

    def _chosen(self, model: ir.Model) -> list[ir.Value]:
        return [
            value
            for value in float_weights(model, self.min_elements)
            if matches(str(value.name), self.select)
            and not matches(str(value.name), (*self.keep, f"*{SCALES}"))
            and _storable(model.graph, value)
        ]

    def _store(self, graph: ir.Graph, weight: ir.Value) -> RoundedWeight:
        name, array = str(weight.name), read_array(weight)
        reader, index = next(iter(weight.uses()))
        axis = _OUTPUT_AXIS[reader.op_type]
        first = np.moveaxis(array, axis, 0)
        rounded = round_groups(np.ascontiguousarray(first.reshape(first.shape[0], -1)))
        codes = np.ascontiguousarray(np.moveaxis(rounded.codes.reshape(first.shape), 0, axis))
        scale_shape = [size if place == axis else 1 for place, size in enumerate(array.shape)]
        scales_array = rounded.scales.reshape(scale_shape)
        stored = new_initializer(graph, name, codes, replaces=weight)
        scales = new_initializer(graph, f"{name}{SCALES}", scales_array)
        if reader.op_type == "Gather":
            _widen_rows(graph, reader, stored, scales)
        else:
            wide = _named("Cast", [stored], f"{name}.cast", {"to": int(ir.DataType.FLOAT)})
            floats = _named("Mul", [wide.outputs[0], scales], f"{name}.floats")
            graph.insert_before(graph[0], [wide, floats])
            reader.replace_input_with(index, floats.outputs[0])
        back = rounded.floats()
        after = codes.nbytes + scales_array.nbytes
        snr = snr_db(first.reshape(first.shape[0], -1), back)
        return RoundedWeight(name, "stored in 8 bits", array.nbytes, after, snr)


def _storable(graph: ir.Graph, weight: ir.Value) -> bool:
    """Whether the one reader of `weight` is a node of this graph that reads it as weights."""
    uses = weight.uses()
    if len(uses) != 1 or weight.shape is None or len(weight.shape) < 2:
        return False
    node, index = next(iter(uses))
    if node.graph is not graph or node.domain != "" or node.op_type not in _OUTPUT_AXIS:
        return False
    if node.op_type == "Gather":
        return bool(index == 0 and node.attributes.get_int("axis", 0) == 0)
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return False  # its second axis is a channel of each group
    return bool(index == 1) and (node.op_type != "MatMul" or len(weight.shape) == 2)


def _widen_rows(graph: ir.Graph, gather: ir.Node, table: ir.Value, scales: ir.Value) -> None:
    """`gather` reads int8 rows; the product with the rows' scales takes over its output's name and readers."""
    rows = gather.inputs[1]
    output = gather.outputs[0]
    name = str(output.name)
    codes = _named("Gather", [table, rows], f"{name}.codes")
    scale = _named("Gather", [scales, rows], f"{name}.scales")
    wide = _named("Cast", [codes.outputs[0]], f"{name}.cast", {"to": int(ir.DataType.FLOAT)})
    floats = ir.node("Mul", [wide.outputs[0], scale.outputs[0]], name=f"{name}.floats")
    final = floats.outputs[0]
    final.name, final.type, final.shape = output.name, output.type, output.shape
    nodes = [codes, scale, wide, floats]
    ir.convenience.replace_nodes_and_values(graph, gather, [gather], nodes, [output], [final])


def _named(op_type: str, inputs: list[ir.Value | None], name: str, attributes: dict[str, int] | None = None) -> ir.Node:
    node = ir.node(op_type, inputs, attributes or {}, name=name)
    node.outputs[0].name = f"{name}.output"
    return node
