"""Products in 8 bits with standard operators: activations are rounded when they come, weights once.

    x ──► DynamicQuantizeLinear ──► MatMulInteger(weight: [in, out]) ──► Cast ──► Mul(x's scale · weight's) ──► y

Every onnxruntime runs it, and fuses it into one operator where it has one. The weights have a scale for each output.
The activations have one scale for the whole tensor, so the rows of a batch share their range.

Where 8 bits of the activations are too few, what the rounding left over is rounded and multiplied as well:

    x ──► rounded ─────────────► product ──► Add ──► y          16 bits of activations, no byte more of weights
    └──► Sub(rounded) ──► rounded ──► product ──┘
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mimi_export.passes.int8_products import Product, RoundedResult, RoundedWeight, find_products, snr_db
from mimi_export.passes.int8_rounding import round_groups
from mimi_export.passes.weights import SCALES, matches, new_initializer

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
        fine: patterns of weight names whose activations are rounded in two steps.
        unsigned: store weights as uint8 with zero at 128. Processors with AVX2 but without VNNI add pairs of
            unsigned times signed products in 16 bits and saturate; unsigned times unsigned never does.
    """

    def __init__(
        self,
        select: Sequence[str] = ("*",),
        keep: Sequence[str] = (),
        fine: Sequence[str] = (),
        unsigned: bool = False,
    ) -> None:
        super().__init__()
        self.select, self.keep, self.fine = tuple(select), tuple(keep), tuple(fine)
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
        products = find_products(model, self.select, self.keep)
        builders: dict[ir.Value, _Activations] = {}
        weights = []
        for product in products:
            activations = builders.setdefault(product.x, _Activations(product.x, product.name))
            weights.append(self._replace(model.graph, product, activations))
        return RoundedResult(model, bool(weights), tuple(weights))

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been replaced."""
        left = [product.name for product in find_products(model, self.select, self.keep)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed a float product")

    def _replace(self, graph: ir.Graph, product: Product, activations: _Activations) -> RoundedWeight:
        name, matrix, y = product.name, product.matrix(), product.y
        rounded = round_groups(np.ascontiguousarray(matrix.T))
        codes = np.ascontiguousarray(rounded.codes.T)
        stored = (codes.astype(np.int16) + 128).astype(np.uint8) if self.unsigned else codes
        weight = [new_initializer(graph, name, stored, replaces=product.weight)]
        scales = new_initializer(graph, f"{name}{SCALES}", rounded.scales[:, 0])
        if self.unsigned:
            weight.append(new_initializer(graph, f"{name}.zero_point", np.array(128, np.uint8)))
        build = _Builder()
        fine = matches(name, self.fine)
        result = _multiply(build, name, activations.coarse(build), weight, scales)
        if fine:
            rest = _multiply(build, f"{name}.rest", activations.rest(build), weight, scales)
            result = build("Add", [result, rest], f"{name}.sum")
        if product.bias is not None:
            result = build("Add", [result, product.bias], f"{name}.bias")
        result.name, result.type, result.shape = y.name, y.type, y.shape
        ir.convenience.replace_nodes_and_values(graph, product.node, [product.node], build.nodes, [y], [result])
        form = f"8-bit product with {16 if fine else 8}-bit activations"
        after = stored.nbytes + rounded.scales.nbytes
        return RoundedWeight(name, form, matrix.nbytes, after, snr_db(matrix.T, rounded.floats()))


class _Builder:
    """Collects new nodes; a node's outputs are named after it."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __call__(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: dict[str, int] | None = None
    ) -> ir.Value:
        """Add a node and give its output."""
        return self.add(op_type, inputs, name, attributes, (".output",))[0]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: dict[str, int] | None,
        suffixes: Sequence[str],
    ) -> Sequence[ir.Value]:
        """Add a node with an output for each suffix."""
        node = ir.node(op_type, list(inputs), attributes or {}, num_outputs=len(suffixes), name=name)
        for output, suffix in zip(node.outputs, suffixes, strict=True):
            output.name = name + suffix
        self.nodes.append(node)
        return node.outputs


class _Activations:
    """The rounded forms of one tensor; each is built when the first product asks for it, in front of that product."""

    def __init__(self, x: ir.Value, name: str) -> None:
        self._x = x
        self._name = f"{name}.activations"
        self._coarse: Sequence[ir.Value] | None = None
        self._rest: Sequence[ir.Value] | None = None

    def coarse(self, build: _Builder) -> Sequence[ir.Value]:
        """Codes uint8, scale and zero point of the tensor."""
        if self._coarse is None:
            self._coarse = _round(build, self._x, self._name)
        return self._coarse

    def rest(self, build: _Builder) -> Sequence[ir.Value]:
        """The same of what the first rounding left over."""
        if self._rest is None:
            floats = build("DequantizeLinear", self.coarse(build), f"{self._name}.coarse")
            left = build("Sub", [self._x, floats], f"{self._name}.left")
            self._rest = _round(build, left, f"{self._name}.rest")
        return self._rest


def _round(build: _Builder, x: ir.Value, name: str) -> Sequence[ir.Value]:
    return build.add("DynamicQuantizeLinear", [x], name, None, (".codes", ".scale", ".zero_point"))


def _multiply(
    build: _Builder, name: str, activations: Sequence[ir.Value], weight: Sequence[ir.Value], scales: ir.Value
) -> ir.Value:
    """Integers times integers, then both scales; nodes in the order and form that onnxruntime fuses."""
    codes, x_scale, x_zero = activations
    sums = build("MatMulInteger", [codes, weight[0], x_zero, *weight[1:]], f"{name}.integers")
    wide = build("Cast", [sums], f"{name}.cast", {"to": int(ir.DataType.FLOAT)})
    scale = build("Mul", [x_scale, scales], f"{name}.scale")
    return build("Mul", [wide, scale], f"{name}.product")
