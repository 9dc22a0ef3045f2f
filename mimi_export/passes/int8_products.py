"""Where a graph multiplies activations with a constant matrix: what the 8-bit product passes replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.contract.decibels import decibels
from mimi_export.passes.weights import float_weights, matches, read_array


@dataclass(frozen=True)
class Product:
    """`y = x @ weight` (plus a bias): a `MatMul`, or a `Gemm` that is nothing more than that."""

    node: ir.Node
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """The weight's name."""
        return str(self.weight.name)

    @property
    def x(self) -> ir.Value:
        """The activations `[…, in]`."""
        value = self.node.inputs[0]
        if value is None:
            raise ValueError(f"{self.node.name} has no first input")
        return value

    @property
    def y(self) -> ir.Value:
        """The result `[…, out]`."""
        return self.node.outputs[0]

    def matrix(self) -> NDArray[np.float32]:
        """The weights `[in, out]`."""
        matrix: NDArray[np.float32] = read_array(self.weight)
        return np.ascontiguousarray(matrix.T) if self.transposed else matrix


@dataclass(frozen=True)
class RoundedWeight:
    """What became of one weight: how it is stored, its bytes before and after, and the SNR of the weights in dB."""

    name: str
    form: str
    bytes_before: int
    bytes_after: int
    snr_db: float


@dataclass
class RoundedResult(ir.passes.PassResult):
    """The new model and what was done to each weight."""

    weights: tuple[RoundedWeight, ...] = ()


def find_products(
    model: ir.Model, select: Sequence[str], keep: Sequence[str] = (), min_elements: int = 0
) -> list[Product]:
    """Products with a float32 weight `[in, out]` whose name fits `select` and not `keep`, in the graph's order.

    Weights of fewer than `min_elements` are left out.

    Only a weight that one single product reads counts: a second reader would need the float32 copy as well.
    """
    found = []
    weights = set(float_weights(model, min_elements))
    for node in model.graph:
        if node.domain == "" and node.op_type in ("MatMul", "Gemm") and len(node.inputs) >= 2:
            weight = node.inputs[1]
            if weight is None or weight not in weights or len(weight.uses()) != 1:
                continue
            if len(read_array(weight).shape) != 2:
                continue
            if not matches(str(weight.name), select) or matches(str(weight.name), keep):
                continue
            product = _product(node, weight)
            if product is not None:
                found.append(product)
    return found


def snr_db(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Signal-to-noise ratio in decibels; infinite where nothing changed."""
    noise = float(np.square(wanted - got, dtype=np.float64).sum())
    return decibels(float(np.square(wanted, dtype=np.float64).sum()), noise)


def _product(node: ir.Node, weight: ir.Value) -> Product | None:
    if node.op_type == "MatMul":
        return Product(node, weight, False, None)
    attributes = node.attributes
    plain = (
        attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
        and attributes.get_int("transA", 0) == 0
    )
    if not plain:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Product(node, weight, attributes.get_int("transB", 0) == 1, bias)
