"""Codebooks in 8 bits, for the nearest-neighbour search of the encoder.

    residual ──► codes ──► MatMulInteger(entriesᵀ) ──► … (`int8_matmuls`) ──► Add(offset) ──► ArgMax
    code ──► Gather(entries) ──► Cast ──► Mul(Gather(scales)) ──► what the next level's residual is less by

The entries stand in the file once, `[entries, dim]`, as `Gather` reads them; the search reads them transposed, which
onnxruntime computes once, when it loads. An entry has one scale.

The nearest entry e to x is that of the largest x·e - |e|²/2. Rounded entries ê get offsets of their own: by
x·ê - |ê|²/2 the search is exact among them, and the rounding of an entry errs by its product with x - e, which is small
where e is near. With the offsets of the entries before, it would err by its product with x.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.passes.int8_matmuls import RoundedActivations
from mimi_export.passes.rewriting import (
    SCALES,
    Builder,
    float_weights,
    given,
    is_plain_gemm,
    new_initializer,
    read_array,
)
from mimi_export.passes.rounding import round_columns


@dataclass(frozen=True)
class Codebook:
    """A matrix `[entries, dim]`, the product that searches it, and the node that reads the found entry."""

    entries: ir.Value
    search: ir.Node
    gather: ir.Node | None


class RoundedCodebooks(ir.passes.FunctionalPass):
    """Round matrices that a `Gemm` reads transposed, with a bias, and at most one `Gather` reads by rows.

    Requires: nothing.
    Ensures: the same inputs and outputs; no chosen codebook is float32.
    What it leaves alone: matrices with other readers.

    Args:
        names: the codebooks.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert a copy."""
        model = model.clone()
        chosen = self._chosen(model)
        for name, book in chosen.items():
            _replace(model.graph, name, book)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been rounded."""
        if left := self._chosen(model):
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed float32")

    def _chosen(self, model: ir.Model) -> dict[str, Codebook]:
        return {name: book for name, book in find_codebooks(model).items() if name in self.names}


def find_codebooks(model: ir.Model) -> dict[str, Codebook]:
    """Codebooks of a graph by name."""
    books = {name: _codebook(model.graph, value) for name, value in float_weights(model).items()}
    return {name: book for name, book in books.items() if book is not None}


def _codebook(graph: ir.Graph, entries: ir.Value) -> Codebook | None:
    readers = {use.node.op_type: use for use in entries.uses()}
    search, gather = readers.get("Gemm"), readers.get("Gather")
    if search is None or len(entries.uses()) != 1 + (gather is not None) or len(read_array(entries).shape) != 2:
        return None
    plain = is_plain_gemm(search.node) and search.node.attributes.get_int("transB", 0) == 1
    if search.idx != 1 or not plain or len(search.node.inputs) < 3 or search.node.inputs[2] is None:
        return None
    if gather is not None and (gather.idx != 0 or gather.node.attributes.get_int("axis", 0) != 0):
        return None
    nodes = [search.node] + ([gather.node] if gather else [])
    if any(node.graph is not graph for node in nodes):
        return None
    return Codebook(entries, search.node, gather.node if gather else None)


def _replace(graph: ir.Graph, name: str, book: Codebook) -> None:
    array = read_array(book.entries)
    rounded = round_columns(np.ascontiguousarray(array.T))
    entries = new_initializer(graph, name, np.ascontiguousarray(rounded.codes.T), replaces=book.entries)
    residual, _, offset = map(given, book.search.inputs)
    offset = _offset(graph, offset, array, rounded.floats().T)
    build = Builder()
    columns = build("Transpose", [entries], f"{name}.columns", {"perm": [1, 0]})
    products = RoundedActivations(graph, build, residual, f"{name}.residual").times(
        build, name, columns, rounded.scales
    )
    build.replace(graph, book.search, build("Add", [products, offset], f"{name}.score"))
    if book.gather is not None:
        code = given(book.gather.inputs[1])
        build = Builder()
        rows = build("Gather", [entries, code], f"{name}.rows")
        floats = build("Cast", [rows], f"{name}.floats", {"to": int(ir.DataType.FLOAT)})
        last = new_initializer(graph, f"{name}.last_axis", np.array([1], np.int64))
        column = build("Unsqueeze", [graph.initializers[f"{name}{SCALES}"], last], f"{name}.column")  # at load
        scale = build("Gather", [column, code], f"{name}.row_scales")
        build.replace(graph, book.gather, build("Mul", [floats, scale], f"{name}.entry"))


def _offset(graph: ir.Graph, offset: ir.Value, entries: NDArray[Any], rounded: NDArray[Any]) -> ir.Value:
    """The offsets `[entries]` of rounded entries; what is no `-|e|²/2` stays as it is."""
    if offset.const_value is None or len(offset.uses()) != 1:
        return offset
    before, after = (-0.5 * np.square(table, dtype=np.float64).sum(axis=1) for table in (entries, rounded))
    values = read_array(offset)
    if values.size != before.size or not np.allclose(values.ravel(), before, rtol=1e-4):
        return offset
    return new_initializer(graph, str(offset.name), after.astype(values.dtype).reshape(values.shape), replaces=offset)
