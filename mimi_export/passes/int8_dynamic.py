"""Products in 8 bits with standard operators: activations are rounded when they come, weights once.

    x ──► DynamicQuantizeLinear ──► MatMulInteger(weight: [in, out]) ──► Cast ──► Mul(x's scale · weight's) ──► y

Every onnxruntime runs it, and fuses it into one operator where it has one. The weights have a scale for each output.
The activations have one scale for the whole tensor, so the rows of a batch share their range.

Where 8 bits of the activations are too few, what the rounding left over is rounded as well and goes through the same
product as further rows: 16 bits of activations, no byte more of weights, and no second reading of them, which is what
a product of few rows costs.

    x ──► rounded ──┬──────────────────────► Concat ──► MatMulInteger ──► … ──► Split ──────────► Add ──► y
                    └──► x - it ──► rounded ──┘                              └──► Mul(1/255) ──┘
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.passes.builder import Builder
from mimi_export.passes.int8_products import Product, RoundedResult, RoundedWeight, find_products, snr_db
from mimi_export.passes.int8_rounding import round_groups
from mimi_export.passes.weights import SCALES, matches, new_initializer

OLDEST_OPSET = 11  # DynamicQuantizeLinear
SPLIT_COUNTS_OPSET = 18  # Split wants to be told into how many
FINER = 255  # steps of the second rounding in one of the first


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
        min_elements: smaller weights are left.
    """

    def __init__(
        self,
        select: Sequence[str] = ("*",),
        keep: Sequence[str] = (),
        fine: Sequence[str] = (),
        unsigned: bool = False,
        min_elements: int = 0,
    ) -> None:
        super().__init__()
        self.select, self.keep, self.fine = tuple(select), tuple(keep), tuple(fine)
        self.unsigned, self.min_elements = unsigned, min_elements

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
        products = find_products(model, self.select, self.keep, self.min_elements)
        builders: dict[ir.Value, _Activations] = {}
        weights = []
        for product in products:
            activations = builders.setdefault(product.x, _Activations(model.graph, product.x, product.name))
            weights.append(self._replace(model.graph, product, activations))
        return RoundedResult(model, bool(weights), tuple(weights))

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been replaced."""
        left = [product.name for product in find_products(model, self.select, self.keep, self.min_elements)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed a float product")

    def _replace(self, graph: ir.Graph, product: Product, activations: _Activations) -> RoundedWeight:
        name, matrix = product.name, product.matrix()
        rounded = round_groups(np.ascontiguousarray(matrix.T))
        codes = np.ascontiguousarray(rounded.codes.T)
        stored = (codes.astype(np.int16) + 128).astype(np.uint8) if self.unsigned else codes
        weight = [new_initializer(graph, name, stored, replaces=product.weight)]
        scales = new_initializer(graph, f"{name}{SCALES}", rounded.scales[:, 0])
        if self.unsigned:
            weight.append(new_initializer(graph, f"{name}.zero_point", np.array(128, np.uint8)))
        build = Builder()
        fine = matches(name, self.fine)
        codes_of = activations.fine if fine else activations.coarse
        result = multiply_integers(build, name, codes_of(build), weight, scales)
        if fine:
            result = activations.join(build, name, result)
        if product.bias is not None:
            result = build("Add", [result, product.bias], f"{name}.bias")
        build.replace(graph, product.node, result)
        form = f"8-bit product with {16 if fine else 8}-bit activations"
        after = stored.nbytes + rounded.scales.nbytes
        return RoundedWeight(name, form, matrix.nbytes, after, snr_db(matrix.T, rounded.floats()))


class _Activations:
    """The rounded forms of one tensor; each is built when the first product asks for it, in front of that product."""

    def __init__(self, graph: ir.Graph, x: ir.Value, name: str) -> None:
        self._graph = graph
        self._x = x
        self._name = f"{name}.activations"
        self._coarse: Sequence[ir.Value] | None = None
        self._fine: Sequence[ir.Value] | None = None

    def coarse(self, build: Builder) -> Sequence[ir.Value]:
        """Codes uint8, scale and zero point of the tensor."""
        if self._coarse is None:
            self._coarse = round_activations(build, self._x, self._name)
        return self._coarse

    def fine(self, build: Builder) -> Sequence[ir.Value]:
        """The same of the tensor and, behind it on the first axis, of `FINER` times what its rounding left over.

        Twice the step of `DynamicQuantizeLinear` reaches every value with the zero point in the middle, which the
        rest needs, and both must have one zero point. Twice a scale is exact: no value is out of reach by rounding.
        """
        if self._fine is None:
            name = self._name
            zero = self._constant("middle", np.array(128, np.uint8))
            scale = build(
                "Mul", [self.coarse(build)[1], self._constant("two", np.array(2, np.float32))], f"{name}.step"
            )
            codes = build("QuantizeLinear", [self._x, scale, zero], f"{name}.high")
            floats = build("DequantizeLinear", [codes, scale, zero], f"{name}.floats")
            left = build("Sub", [self._x, floats], f"{name}.left")
            finer = build("Mul", [scale, self._share()], f"{name}.finer")
            rest = build("QuantizeLinear", [left, finer, zero], f"{name}.low")
            self._fine = (build("Concat", [codes, rest], f"{name}.both", {"axis": 0}), scale, zero)
        return self._fine

    def join(self, build: Builder, name: str, products: ir.Value) -> ir.Value:
        """Add the two halves of a product of `fine` codes."""
        opset = self._graph.opset_imports.get("", 0)
        attributes = {"axis": 0, **({"num_outputs": 2} if opset >= SPLIT_COUNTS_OPSET else {})}
        high, low = build.add("Split", [products], f"{name}.halves", attributes, (".high", ".low"))
        return build("Add", [high, build("Mul", [low, self._share()], f"{name}.low")], f"{name}.sum")

    def _share(self) -> ir.Value:
        return self._constant("finer", np.array(1 / FINER, np.float32))

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant that all products of the graph share."""
        name = f"fine_activations.{name}"
        return self._graph.initializers.get(name) or new_initializer(self._graph, name, array)


def round_activations(build: Builder, x: ir.Value, name: str) -> Sequence[ir.Value]:
    """Codes uint8, scale and zero point of `x`, by its own range."""
    return build.add("DynamicQuantizeLinear", [x], name, None, (".codes", ".scale", ".zero_point"))


def multiply_integers(
    build: Builder, name: str, activations: Sequence[ir.Value], weight: Sequence[ir.Value], scales: ir.Value
) -> ir.Value:
    """Integers times integers, then both scales; nodes in the order and form that onnxruntime fuses.

    Args:
        build: takes the nodes.
        name: begins their names.
        activations: codes, scale and zero point.
        weight: codes `[in, out]` and, for unsigned ones, their zero point.
        scales: `[out]`.
    """
    codes, x_scale, x_zero = activations
    sums = build("MatMulInteger", [codes, weight[0], x_zero, *weight[1:]], f"{name}.integers")
    wide = build("Cast", [sums], f"{name}.cast", {"to": int(ir.DataType.FLOAT)})
    scale = build("Mul", [x_scale, scales], f"{name}.scale")
    return build("Mul", [wide, scale], f"{name}.product")
