"""What a graph says of itself: the dimensions of its inputs and outputs, and metadata without traces of its maker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from mimi_export.contract.spec import GraphSpec, TensorSpec

PRODUCER = "mimi-export"


class SetInterface(ir.passes.InPlacePass):
    """Name the free dimensions of inputs and outputs as `GraphSpec` does; the exporter leaves expressions there.

    Requires: inputs and outputs have the names and the order of `graph`.
    Ensures: their types and ranks are those of `graph`, too.
    """

    def __init__(self, graph: GraphSpec) -> None:
        super().__init__()
        self.graph = graph

    def requires(self, model: ir.Model) -> None:
        """Compare names and order."""
        for wanted, found in ((self.graph.inputs, model.graph.inputs), (self.graph.outputs, model.graph.outputs)):
            names, got = [tensor.name for tensor in wanted], [value.name for value in found]
            if names != got:
                raise ir.passes.PreconditionError(f"the graph has {got}, expected {names}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the shapes."""
        pairs = [*zip(model.graph.inputs, self.graph.inputs, strict=True)]
        pairs += zip(model.graph.outputs, self.graph.outputs, strict=True)
        modified = [_set_shape(value, tensor) for value, tensor in pairs]
        return ir.passes.PassResult(model, any(modified))

    def ensures(self, model: ir.Model) -> None:
        """Compare types."""
        values = [*model.graph.inputs, *model.graph.outputs]
        for value, tensor in zip(values, [*self.graph.inputs, *self.graph.outputs], strict=True):
            if value.dtype != ir.DataType.from_numpy(np.dtype(tensor.dtype)):
                raise ir.passes.PostconditionError(f"{value.name} is {value.dtype}, expected {tensor.dtype}")


def _set_shape(value: ir.Value, tensor: TensorSpec) -> bool:
    shape = ir.Shape(tensor.shape)
    if value.shape == shape:
        return False
    value.shape = shape
    return True


class SetMetadata(ir.passes.InPlacePass):
    """Replace a model's metadata by `props`, and remove every note on its nodes and values.

    The exporter writes a stack trace with local paths on each node, and shapes as expressions on each value.

    Requires: nothing.
    Ensures: no node or value carries metadata.
    """

    def __init__(self, props: Mapping[str, str], version: str) -> None:
        super().__init__()
        self.props = dict(props)
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clear, then set."""
        common.ClearMetadataAndDocStringPass()(model)
        model.metadata_props.clear()
        model.metadata_props.update(self.props)
        model.graph.metadata_props.clear()
        model.graph.name = self.props.get("name", "mimi")
        model.producer_name, model.producer_version = PRODUCER, self.version
        for value in _values(model):
            value.metadata_props.clear()
        for node in model.graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """Look for what was left."""
        for node in model.graph.all_nodes():
            if node.metadata_props or node.doc_string:
                raise ir.passes.PostconditionError(f"node {node.name} still carries notes")
        for value in _values(model):
            if value.metadata_props or value.doc_string:
                raise ir.passes.PostconditionError(f"value {value.name} still carries notes")


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """All values of the graph, initializers too: the exporter notes on each from which part of the module it came."""
    yield from (*model.graph.inputs, *model.graph.initializers.values())
    for node in model.graph.all_nodes():
        yield from node.outputs
