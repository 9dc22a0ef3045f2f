"""Give a graph's inputs and outputs the dimensions of the one state definition."""

from __future__ import annotations

import onnx_ir as ir

from mimi_export.contract.spec import GraphSpec, TensorSpec


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
        types = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}
        values = [*model.graph.inputs, *model.graph.outputs]
        for value, tensor in zip(values, [*self.graph.inputs, *self.graph.outputs], strict=True):
            if value.dtype != types[tensor.dtype]:
                raise ir.passes.PostconditionError(f"{value.name} is {value.dtype}, expected {tensor.dtype}")


def _set_shape(value: ir.Value, tensor: TensorSpec) -> bool:
    shape = ir.Shape(tensor.shape)
    if value.shape == shape:
        return False
    value.shape = shape
    return True
