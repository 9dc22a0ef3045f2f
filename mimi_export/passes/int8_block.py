"""Products with weights in blocks of 8 bits: `MatMul` becomes `com.microsoft.MatMulNBits`.

    x: [..., in] ──► MatMulNBits(B: uint8 [out, blocks, block], scales: [out * blocks]) ──► [..., out]

A block is a run of consecutive inputs of one output; the integers are stored with 128 added. With accuracy level 4
onnxruntime rounds the activations to 8 bits as well, row by row and block by block, and multiplies integers: rows
never influence each other. At its default level the operator multiplies floats and is far slower than float weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.errors import ConfigError
from mimi_export.passes.int8_products import Product, RoundedResult, RoundedWeight, find_products, snr_db
from mimi_export.passes.int8_rounding import Rounded, round_groups
from mimi_export.passes.weights import SCALES, new_initializer

DOMAIN = "com.microsoft"
BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVEL = 4


class BlockProducts(ir.passes.FunctionalPass):
    """Replace products with constant float32 matrices by `MatMulNBits`.

    Requires: no `MatMulNBits` yet.
    Ensures: the same inputs and outputs; no chosen product is left as `MatMul` or `Gemm`.
    What it leaves alone: matrices that several nodes read, products of two activations, every other operator.

    Args:
        select: patterns of weight names to replace; all by default.
        keep: patterns of weight names to leave; they win over `select`.
        block_size: weights with one scale.
        bits: 8, or 4 as an experiment.
        min_elements: smaller weights are left.
    """

    def __init__(
        self,
        select: Sequence[str] = ("*",),
        keep: Sequence[str] = (),
        block_size: int = 32,
        bits: int = 8,
        min_elements: int = 0,
    ) -> None:
        super().__init__()
        if block_size not in BLOCK_SIZES:
            raise ConfigError(f"block size is {block_size}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
        if bits not in (4, 8):
            raise ConfigError(f"bits is {bits}, expected 8 or 4")
        self.select, self.keep = tuple(select), tuple(keep)
        self.block_size, self.bits, self.min_elements = block_size, bits, min_elements

    def requires(self, model: ir.Model) -> None:
        """Look for an earlier run."""
        for node in model.graph:
            if node.op_type == "MatMulNBits":
                raise ir.passes.PreconditionError(
                    f"the graph multiplies in blocks of few bits already (node {node.name}): it was converted before; "
                    "convert its fp32 parent"
                )

    def call(self, model: ir.Model) -> RoundedResult:
        """Convert a copy."""
        model = model.clone()
        products = find_products(model, self.select, self.keep, self.min_elements)
        weights = tuple(self._replace(model.graph, product) for product in products)
        if weights:
            model.opset_imports.setdefault(DOMAIN, 1)
        return RoundedResult(model, bool(weights), weights)

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been replaced."""
        left = [product.name for product in find_products(model, self.select, self.keep, self.min_elements)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed a float product")

    def _replace(self, graph: ir.Graph, product: Product) -> RoundedWeight:
        name, matrix = product.name, product.matrix()
        inputs, outputs = matrix.shape
        rounded = self._round(matrix)
        stored = self._pack(rounded)
        y = product.y
        quantized = new_initializer(graph, name, stored, replaces=product.weight)
        scales = new_initializer(graph, f"{name}{SCALES}", rounded.scales.reshape(-1))
        arguments: list[ir.Value | None] = [product.x, quantized, scales]
        node = ir.node(
            "MatMulNBits",
            arguments,
            {
                "K": inputs,
                "N": outputs,
                "bits": self.bits,
                "block_size": self.block_size,
                "accuracy_level": ACCURACY_LEVEL,
            },
            domain=DOMAIN,
            name=name,
        )
        nodes = [node]
        if product.bias is not None:
            node.outputs[0].name = f"{name}.product"
            node.outputs[0].type = y.type
            nodes.append(ir.node("Add", [node.outputs[0], product.bias], name=f"{name}.bias"))
        final = nodes[-1].outputs[0]
        final.name, final.type, final.shape = y.name, y.type, y.shape
        ir.convenience.replace_nodes_and_values(graph, product.node, [product.node], nodes, [y], [final])
        back = rounded.floats().reshape(outputs, -1)[:, :inputs].T
        after = stored.nbytes + rounded.scales.nbytes
        form = f"{self.bits}-bit product, blocks of {self.block_size}"
        return RoundedWeight(name, form, matrix.nbytes, after, snr_db(matrix, back))

    def _round(self, matrix: NDArray[np.float32]) -> Rounded:
        """Codes `[out, blocks, block]`; the last block is filled with zeros."""
        inputs, outputs = matrix.shape
        blocks = -(-inputs // self.block_size)
        padded = np.zeros((outputs, blocks * self.block_size), np.float32)
        padded[:, :inputs] = matrix.T
        return round_groups(padded.reshape(outputs, blocks, self.block_size), self.bits)

    def _pack(self, rounded: Rounded) -> NDArray[np.uint8]:
        """Unsigned codes, zero at the middle; of 4 bits the first of two in the lower half of a byte."""
        codes: NDArray[np.uint8] = (rounded.codes.astype(np.int16) + 2 ** (self.bits - 1)).astype(np.uint8)
        if self.bits == 8:
            return codes
        low, high = codes[..., 0::2], codes[..., 1::2]
        packed: NDArray[np.uint8] = (low | high << 4).astype(np.uint8)
        return packed
