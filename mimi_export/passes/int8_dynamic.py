"""Products in 8 bits with standard operators: activations are rounded when they come, weights once.

    x ──► DynamicQuantizeLinear ──► MatMulInteger(weight: [in, out]) ──► Cast ──► Mul(x's scale · weight's) ──► y

Every onnxruntime runs it, and fuses it into one operator where it has one. The weights have a scale for each output.
The activations have one scale for the whole tensor, so the rows of a batch share their range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mimi_export.errors import ConfigError
from mimi_export.passes.int8_products import Product, RoundedResult, RoundedWeight, find_products, snr_db
from mimi_export.passes.int8_rounding import round_groups
from mimi_export.passes.weights import new_initializer

OLDEST_OPSET = 11  # DynamicQuantizeLinear


class DynamicProducts(ir.passes.FunctionalPass):
    """Replace products with constant float32 matrices by `MatMulInteger`.

    Requires: no `MatMulInteger` yet; opset 11 or later.
    Ensures: the same inputs and outputs; no chosen product is left as `MatMul` or `Gemm`; activations that several
        products read are rounded once.
    What it leaves alone: matrices that several nodes read, products of two activations, every other operator.

    Args:
        select: patterns of weight names to replace; all by default.
        keep: patterns of weight names to leave; they win over `select`.
        unsigned: store weights as uint8 with zero at 128. Processors with AVX2 but without VNNI add pairs of
            unsigned times signed products in 16 bits and saturate; unsigned times unsigned never does.
    """

    def __init__(
        self, select: Sequence[str] = ("*",), keep: Sequence[str] = (), unsigned: bool = False
    ) -> None:
        super().__init__()
        self.select, self.keep = tuple(select), tuple(keep)
        self.unsigned = unsigned

    def requires(self, model: ir.Model) -> None:
        """Look for an earlier run, and at the opset."""
        for node in model.graph:
            if node.op_type == "MatMulInteger":
                raise ir.passes.PreconditionError(
                    f"the graph multiplies integers already (node {node.name}): it was converted before; "
                    "convert its fp32 parent"
                )
        opset = model.opset_imports.get("", 0)
        if opset < OLDEST_OPSET:
            raise ir.passes.PreconditionError(f"the graph has opset {opset}, expected {OLDEST_OPSET} or later")

    def call(self, model: ir.Model) -> RoundedResult:
        """Convert a copy."""
        model = model.clone()
        rounded_inputs: dict[ir.Value, ir.Node] = {}
        products = find_products(model, self.select, self.keep)
        weights = tuple(self._replace(model.graph, product, rounded_inputs) for product in products)
        return RoundedResult(model, bool(weights), weights)

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been replaced."""
        left = [product.name for product in find_products(model, self.select, self.keep)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed a float product")

    def _replace(self, graph: ir.Graph, product: Product, rounded_inputs: dict[ir.Value, ir.Node]) -> RoundedWeight:
        name, matrix, x, y = product.name, product.matrix(), product.x, product.y
        rounded = round_groups(np.ascontiguousarray(matrix.T))
        codes = np.ascontiguousarray(rounded.codes.T)
        stored = (codes.astype(np.int16) + 128).astype(np.uint8) if self.unsigned else codes
        weight = new_initializer(graph, name, stored, replaces=product.weight)
        scales = new_initializer(graph, f"{name}.scales", rounded.scales[:, 0])
        nodes: list[ir.Node] = []
        if x not in rounded_inputs:
            rounded_inputs[x] = _round_activations(x, name)
            nodes.append(rounded_inputs[x])
        x_codes, x_scale, x_zero = rounded_inputs[x].outputs
        arguments: list[ir.Value | None] = [x_codes, weight, x_zero]
        if self.unsigned:
            arguments.append(new_initializer(graph, f"{name}.zero_point", np.array(128, np.uint8)))
        sums = ir.node("MatMulInteger", arguments, name=f"{name}.integers")
        wide = ir.node("Cast", [sums.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.cast")
        scale = ir.node("Mul", [x_scale, scales], name=f"{name}.scale")
        result = ir.node("Mul", [wide.outputs[0], scale.outputs[0]], name=name)
        nodes += [sums, wide, scale, result]
        if product.bias is not None:
            nodes.append(ir.node("Add", [result.outputs[0], product.bias], name=f"{name}.bias"))
        for node in nodes[:-1]:
            if len(node.outputs) == 1:
                node.outputs[0].name = f"{node.name}.output"
        final = nodes[-1].outputs[0]
        final.name, final.type, final.shape = y.name, y.type, y.shape
        ir.convenience.replace_nodes_and_values(graph, product.node, [product.node], nodes, [y], [final])
        after = stored.nbytes + rounded.scales.nbytes
        return RoundedWeight(
            name, "8-bit product, a scale for each output", matrix.nbytes, after, snr_db(matrix.T, rounded.floats())
        )


def _round_activations(x: ir.Value, name: str) -> ir.Node:
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{name}.activations")
    for output, word in zip(node.outputs, ("codes", "scale", "zero_point"), strict=True):
        output.name = f"{name}.activations.{word}"
    return node


def check_bits(bits: int) -> None:
    """`MatMulInteger` has 8 bits only."""
    if bits != 8:
        raise ConfigError(f"bits is {bits}, but the portable target has 8 only")
