"""Leave in a graph what its users need to know, and nothing of the machine that made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
from onnx_ir.passes import common

PRODUCER = "mimi-export"


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
