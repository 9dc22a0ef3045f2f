"""Products in 8-bit integers with standard operators, by which every processor gets the same integers.

Activations are rounded when they come, each row by its own peak (largest magnitude), and twice, so that 14 bits count:

    x ──► Div(peak) ──► QuantizeLinear(1/63) ─┬──────────────────────────────────────────────► Concat ──► codes
                │                             └─► DequantizeLinear ──► Sub ──► QuantizeLinear(1/63/126) ──┘
                └────────────────────────────────────────────────────────┘

    codes [2·rows, in] ──► MatMulInteger(weight: [in, out]) ──► Cast ──► Mul(scales) ──► Split ──► first + second/126
                                                                                                ──► Mul(peak) ──► y

Both halves go through one product as further rows, so the weights, which cost most, are read once. No row is rounded
with a look at another one: it gives the same integers whatever else the call holds.

Kernels of x86 processors without VNNI add two neighbouring products in 16 bits. Activations in 1 … 127 and weights in
-127 … 127 reach 2 · 127 · 127 = 32258 there, which fits (`runtime.integers` proves it of a file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.passes.rewriting import SCALES, Builder, Matmul, find_matmuls, new_initializer, require_opset
from mimi_export.passes.rounding import Rounded

OLDEST_OPSET = 18  # ReduceMax with axes as an input, Split told into how many
STEPS = 63  # of a row's peak in the first rounding
FINER = 126  # steps of the second rounding in one of the first
MIDDLE = 64  # the code of zero
TINY = 1e-30  # the peak of a row of zeros
PREFIX = "integer_matmuls"


class IntegerMatmuls(ir.passes.FunctionalPass):
    """Replace products with constant float32 matrices by `MatMulInteger`.

    Requires: no `MatMulInteger` yet; opset 18 or later.
    Ensures: the same inputs and outputs; no chosen product is left as `MatMul` or `Gemm`; activations that several
        products read are rounded once.
    What it leaves alone: matrices that several nodes read, products of two activations, every other operator.

    Args:
        rounded: by name, the weights of the products to replace.
    """

    def __init__(self, rounded: Mapping[str, Rounded]) -> None:
        super().__init__()
        self.rounded = rounded

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
        shared: dict[ir.Value, RoundedActivations] = {}
        for name, matmul in chosen.items():
            build, rounded = Builder(), self.rounded[name]
            if matmul.x not in shared:
                shared[matmul.x] = RoundedActivations(model.graph, build, matmul.x, f"{name}.activations")
            weight = new_initializer(model.graph, name, rounded.codes, replaces=matmul.weight)
            result = shared[matmul.x].times(build, name, weight, rounded.scales)
            if matmul.bias is not None:
                result = build("Add", [result, matmul.bias], f"{name}.bias")
            build.replace(model.graph, matmul.node, result)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been replaced."""
        if left := self._chosen(model):
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed a float product")

    def _chosen(self, model: ir.Model) -> dict[str, Matmul]:
        return {name: matmul for name, matmul in find_matmuls(model).items() if name in self.rounded}


class RoundedActivations:
    """The codes of one tensor `[rows, …, in]`.

    Args:
        graph: takes the constants.
        build: takes the nodes.
        x: the tensor.
        name: begins the nodes' names.
    """

    def __init__(self, graph: ir.Graph, build: Builder, x: ir.Value, name: str) -> None:
        self._graph = graph
        step, finer = self._constant("step", 1 / STEPS), self._constant("finer_step", 1 / STEPS / FINER)
        middle, axis = self._constant("middle", MIDDLE, np.uint8), self._constant("axis", [-1], np.int64)
        magnitude = build("Abs", [x], f"{name}.magnitude")
        reach = build("ReduceMax", [magnitude, axis], f"{name}.reach")
        self._peak = build("Max", [reach, self._constant("tiny", TINY)], f"{name}.peak")
        share = build("Div", [x, self._peak], f"{name}.share")
        first = build("QuantizeLinear", [share, step, middle], f"{name}.first")
        floats = build("DequantizeLinear", [first, step, middle], f"{name}.floats")
        left = build("Sub", [share, floats], f"{name}.left")
        second = build("QuantizeLinear", [left, finer, middle], f"{name}.second")
        self._codes = build("Concat", [first, second], f"{name}.codes", {"axis": 0})

    def times(self, build: Builder, name: str, weight: ir.Value, scales: NDArray[np.float32]) -> ir.Value:
        """The product with integers `[in, out]`, as float32; `scales` `[out]` say what a step of them stands for."""
        sums = build("MatMulInteger", [self._codes, weight, self._constant("middle", MIDDLE, np.uint8)], f"{name}.sums")
        wide = build("Cast", [sums], f"{name}.cast", {"to": int(ir.DataType.FLOAT)})
        step = new_initializer(self._graph, f"{name}{SCALES}", scales)
        scale = build("Mul", [self._share(), step], f"{name}.scale")
        scaled = build("Mul", [wide, scale], f"{name}.scaled")
        outputs = (f"{name}.first", f"{name}.second")
        first, second = build.add("Split", [scaled], f"{name}.halves", {"axis": 0, "num_outputs": 2}, outputs)
        rest = build("Mul", [second, self._constant("rest", 1 / FINER)], f"{name}.rest")
        return build("Mul", [build("Add", [first, rest], f"{name}.both"), self._peak], f"{name}.product")

    def _share(self) -> ir.Value:
        """1/63 as a scalar that is not known before the graph runs.

        onnxruntime makes one operator of a product of integers, its `Cast` and its `Mul` where the latter's factor
        is a product of a scalar and a vector, and it would multiply constants with each other before it looks.
        """
        name = f"{PREFIX}.share"
        for node in self._graph:
            if node.name == name:
                return node.outputs[0]
        build = Builder()
        size = build("Size", [self._graph.inputs[0]], f"{PREFIX}.size")
        floats = build("Cast", [size], f"{PREFIX}.size_float", {"to": int(ir.DataType.FLOAT)})
        share = build("Min", [floats, self._constant("step", 1 / STEPS)], name)
        self._graph.insert_before(self._graph[0], build.nodes)
        return share

    def _constant(self, name: str, value: Any, dtype: type = np.float32) -> ir.Value:
        """A constant that all products of the graph share."""
        name = f"{PREFIX}.{name}"
        return self._graph.initializers.get(name) or new_initializer(self._graph, name, np.array(value, dtype))
