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

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.passes.rewriting import SCALES, Builder, Matmul, find_matmuls, new_initializer, require_opset
from mimi_export.passes.rounding import round_groups

OLDEST_OPSET = 11  # DynamicQuantizeLinear
SPLIT_COUNTS_OPSET = 18  # Split wants to be told into how many
FINER = 255  # steps of the second rounding in one of the first
MIDDLE = 128  # what zero is stored as in unsigned weights


class DynamicMatmuls(ir.passes.FunctionalPass):
    """Replace products with constant float32 matrices by `MatMulInteger`.

    Requires: no `MatMulInteger` yet; opset 11 or later.
    Ensures: the same inputs and outputs; no chosen product is left as `MatMul` or `Gemm`; activations that several
        products read are rounded once.
    What it leaves alone: matrices that several nodes read, products of two activations, every other operator.

    Args:
        names: weights of the products to replace.
        fine: those of them whose activations are rounded in two steps.
        unsigned: store weights as uint8 with zero at 128. Processors with AVX2 but without VNNI add pairs of
            unsigned times signed products in 16 bits and saturate; unsigned times unsigned never does.
    """

    def __init__(self, names: Collection[str], fine: Collection[str] = (), unsigned: bool = False) -> None:
        super().__init__()
        self.names, self.fine, self.unsigned = names, fine, unsigned

    def requires(self, model: ir.Model) -> None:
        """Look for an earlier run, and at the opset."""
        for node in model.graph:
            if node.op_type == "MatMulInteger":
                raise ir.passes.PreconditionError(
                    f"the graph multiplies integers already (node {node.name}): it was converted before; "
                    "convert its fp32 parent"
                )
        require_opset(model, OLDEST_OPSET)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert a copy."""
        model = model.clone()
        chosen = self._chosen(model)
        shared: dict[ir.Value, _Activations] = {}
        for name, matmul in chosen.items():
            activations = shared.setdefault(matmul.x, _Activations(model.graph, matmul.x, name))
            self._replace(model.graph, name, matmul, activations)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been replaced."""
        if left := self._chosen(model):
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed a float product")

    def _chosen(self, model: ir.Model) -> dict[str, Matmul]:
        return {name: matmul for name, matmul in find_matmuls(model).items() if name in self.names}

    def _replace(self, graph: ir.Graph, name: str, matmul: Matmul, activations: _Activations) -> None:
        rounded = round_groups(np.ascontiguousarray(matmul.matrix().T))
        codes = np.ascontiguousarray(rounded.codes.T)
        weight = store_codes(graph, matmul.weight, codes, self.unsigned)
        scales = new_initializer(graph, f"{name}{SCALES}", rounded.scales[:, 0])
        build = Builder()
        fine = name in self.fine
        result = multiply_integers(
            build, name, activations.fine(build) if fine else activations.coarse(build), weight, scales
        )
        if fine:
            result = activations.join(build, name, result)
        if matmul.bias is not None:
            result = build("Add", [result, matmul.bias], f"{name}.bias")
        build.replace(graph, matmul.node, result)


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
            zero = self._constant("middle", np.array(MIDDLE, np.uint8))
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
        halves = f"{name}.halves"
        high, low = build.add("Split", [products], halves, attributes, (f"{halves}.high", f"{halves}.low"))
        return build("Add", [high, build("Mul", [low, self._share()], f"{name}.low")], f"{name}.sum")

    def _share(self) -> ir.Value:
        return self._constant("finer", np.array(1 / FINER, np.float32))

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant that all products of the graph share."""
        name = f"fine_activations.{name}"
        return self._graph.initializers.get(name) or new_initializer(self._graph, name, array)


def store_codes(graph: ir.Graph, weight: ir.Value, codes: NDArray[np.int8], unsigned: bool) -> list[ir.Value]:
    """Put integers in the place of a float32 weight; unsigned ones come with their zero point."""
    name = str(weight.name)
    if not unsigned:
        return [new_initializer(graph, name, codes, replaces=weight)]
    stored = (codes.astype(np.int16) + MIDDLE).astype(np.uint8)
    return [
        new_initializer(graph, name, stored, replaces=weight),
        new_initializer(graph, f"{name}.zero_point", np.array(MIDDLE, np.uint8)),
    ]


def round_activations(build: Builder, x: ir.Value, name: str) -> Sequence[ir.Value]:
    """Codes uint8, scale and zero point of `x`, by its own range."""
    outputs = [f"{name}.{part}" for part in ("codes", "scale", "zero_point")]
    return build.add("DynamicQuantizeLinear", [x], name, None, outputs)


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
