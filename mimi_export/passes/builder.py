"""New nodes in place of an old one: what rewriting passes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir


class Builder:
    """Collects new nodes; a node's outputs are named after it."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __call__(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Add a node and give its output."""
        return self.add(op_type, inputs, name, attributes, (".output",))[0]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, Any] | None,
        suffixes: Sequence[str],
    ) -> Sequence[ir.Value]:
        """Add a node with an output for each suffix."""
        node = ir.node(op_type, list(inputs), attributes or {}, num_outputs=len(suffixes), name=name)
        for output, suffix in zip(node.outputs, suffixes, strict=True):
            output.name = name + suffix
        self.nodes.append(node)
        return node.outputs

    def replace(self, graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
        """Put the new nodes where `node` was; `result` takes over the name and the readers of its one output."""
        output = node.outputs[0]
        result.name, result.type, result.shape = output.name, output.type, output.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], self.nodes, [output], [result])
