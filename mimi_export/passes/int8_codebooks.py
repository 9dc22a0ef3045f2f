"""Codebooks in 8 bits, for the nearest-neighbour search of the encoder.

    residual ──► DynamicQuantizeLinear ──► MatMulInteger(entriesᵀ) ──► Cast ──► Mul(scales) ──► Add(offset) ──► ArgMax
    code ──► Gather(entries) ──► Cast ──► Mul(Gather(scales)) ──► what the next level's residual is less by

The entries stand in the file once, `[entries, dim]`, as `Gather` reads them; the search reads them transposed, which
onnxruntime computes once, when it loads. An entry has one scale.

The nearest entry e to x is that of the largest x·e - |e|²/2. Rounded entries ê get offsets of their own: by
x·ê - |ê|²/2 the search is exact among them, and the rounding of an entry errs by its product with x - e, which is small
where e is near. With the offsets of the entries before, it would err by its product with x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mimi_export.passes.builder import Builder
from mimi_export.passes.int8_dynamic import multiply_integers, round_activations
from mimi_export.passes.int8_products import RoundedResult, RoundedWeight, snr_db
from mimi_export.passes.int8_rounding import round_groups
from mimi_export.passes.weights import SCALES, float_weights, matches, new_initializer, read_array

MIDDLE = 128


@dataclass(frozen=True)
class _Codebook:
    entries: ir.Value
    search: ir.Node
    gather: ir.Node | None


class RoundedCodebooks(ir.passes.FunctionalPass):
    """Round matrices that a `Gemm` reads transposed, with a bias, and at most one `Gather` reads by rows.

    Requires: nothing.
    Ensures: the same inputs and outputs; no chosen codebook is float32.
    What it leaves alone: matrices with other readers.

    Args:
        select: patterns of weight names; all by default.
        keep: patterns of names to leave; they win over `select`.
        unsigned: store entries as uint8 with zero at 128, see `DynamicProducts`.
    """

    def __init__(self, select: Sequence[str] = ("*",), keep: Sequence[str] = (), unsigned: bool = False) -> None:
        super().__init__()
        self.select, self.keep = tuple(select), tuple(keep)
        self.unsigned = unsigned

    def call(self, model: ir.Model) -> RoundedResult:
        """Convert a copy."""
        model = model.clone()
        weights = tuple(_replace(model.graph, book, self.unsigned) for book in self._find(model))
        return RoundedResult(model, bool(weights), weights)

    def ensures(self, model: ir.Model) -> None:
        """Look for what should have been rounded."""
        left = [str(book.entries.name) for book in self._find(model)]
        if left:
            raise ir.passes.PostconditionError(f"{', '.join(left)} stayed float32")

    def _find(self, model: ir.Model) -> list[_Codebook]:
        chosen = [
            value
            for value in float_weights(model)
            if matches(str(value.name), self.select) and not matches(str(value.name), self.keep)
        ]
        books = [_codebook(model.graph, value) for value in chosen]
        return [book for book in books if book is not None]


def _codebook(graph: ir.Graph, entries: ir.Value) -> _Codebook | None:
    readers = {use.node.op_type: use for use in entries.uses()}
    search, gather = readers.get("Gemm"), readers.get("Gather")
    if search is None or len(entries.uses()) != 1 + (gather is not None) or len(read_array(entries).shape) != 2:
        return None
    numbers = search.node.attributes
    plain = (
        numbers.get_float("alpha", 1.0) == numbers.get_float("beta", 1.0) == 1.0
        and numbers.get_int("transA", 0) == 0
        and numbers.get_int("transB", 0) == 1
    )
    if search.idx != 1 or not plain or len(search.node.inputs) < 3 or search.node.inputs[2] is None:
        return None
    if gather is not None and (gather.idx != 0 or gather.node.attributes.get_int("axis", 0) != 0):
        return None
    nodes = [search.node] + ([gather.node] if gather else [])
    if any(node.graph is not graph for node in nodes):
        return None
    return _Codebook(entries, search.node, gather.node if gather else None)


def _replace(graph: ir.Graph, book: _Codebook, unsigned: bool) -> RoundedWeight:
    name, array = str(book.entries.name), read_array(book.entries)
    rounded = round_groups(array)
    values = rounded.floats()
    stored = (rounded.codes.astype(np.int16) + MIDDLE).astype(np.uint8) if unsigned else rounded.codes
    entries = new_initializer(graph, name, stored, replaces=book.entries)
    scales = new_initializer(graph, f"{name}{SCALES}", rounded.scales[:, 0])
    residual, _, offset = book.search.inputs
    offset = _offset(graph, _given(offset), array, values)
    build = Builder()
    weight = [build("Transpose", [entries], f"{name}.columns", {"perm": [1, 0]})]
    if unsigned:
        weight.append(new_initializer(graph, f"{name}.zero_point", np.array(MIDDLE, np.uint8)))
    activations = round_activations(build, _given(residual), f"{name}.residual")
    products = multiply_integers(build, name, activations, weight, scales)
    build.replace(graph, book.search, build("Add", [products, offset], f"{name}.score"))
    if book.gather is not None:
        code = _given(book.gather.inputs[1])
        build = Builder()
        rows = build("Gather", [entries, code], f"{name}.rows")
        floats = build("Cast", [rows], f"{name}.floats", {"to": int(ir.DataType.FLOAT)})
        if unsigned:
            middle = new_initializer(graph, f"{name}.middle", np.array(MIDDLE, np.float32))
            floats = build("Sub", [floats, middle], f"{name}.centred")
        last = new_initializer(graph, f"{name}.last_axis", np.array([1], np.int64))
        column = build("Unsqueeze", [scales, last], f"{name}.column")  # [entries, 1], computed at load
        scale = build("Gather", [column, code], f"{name}.row_scales")
        build.replace(graph, book.gather, build("Mul", [floats, scale], f"{name}.entry"))
    after = stored.nbytes + rounded.scales.nbytes
    return RoundedWeight(name, "8-bit codebook", array.nbytes, after, snr_db(array, values))


def _offset(graph: ir.Graph, offset: ir.Value, entries: NDArray[Any], rounded: NDArray[Any]) -> ir.Value:
    """The offsets `[entries]` of rounded entries; what is no `-|e|²/2` stays as it is."""
    if offset.const_value is None or len(offset.uses()) != 1:
        return offset
    before, after = (-0.5 * np.square(table, dtype=np.float64).sum(axis=1) for table in (entries, rounded))
    given = read_array(offset)
    if given.size != before.size or not np.allclose(given.ravel(), before, rtol=1e-4):
        return offset
    return new_initializer(graph, str(offset.name), after.astype(given.dtype).reshape(given.shape), replaces=offset)


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("an input that every such node has is missing")
    return value
