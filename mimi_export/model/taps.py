"""Names inside a graph: intermediate results that keep a name of their own in the ONNX file.

A graph is traced with its taps as extra outputs, so that the exporter writes each as a value called `tap_<name>`;
then the outputs are taken away again. What stays is a name and costs nothing: the graph has the same nodes as without
taps. Passes keep value names, so the same place can be looked at in every variant made from the graph
(`parity.tapped`). A tap is `[B, C, T]` or `[B, T, C]`, as the graph happens to hold it.
"""

from __future__ import annotations

import onnx_ir as ir
from torch import Tensor, nn

from mimi_export.model.graphs import StreamingGraph

TAP_PREFIX = "tap_"


class Tapped(nn.Module):
    """A graph with its taps as further outputs; those that an output shows anyway are left out.

    Weights keep the names they have in the graph: its children are this module's own, the graph itself is not.

    Args:
        module: the graph.
        example: arguments of one call, to learn which taps there are.
    """

    def __init__(self, module: StreamingGraph, example: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._run = module.run
        self._outputs = module.graph.outputs
        for name, child in module.named_children():
            self.add_module(name, child)
        found: dict[str, Tensor] = {}
        outputs = module.run(found.__setitem__, *example)
        shown = {id(output) for output in outputs}
        self.taps = [name for name, tensor in found.items() if id(tensor) not in shown]

    def forward(self, data: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs, then the taps in the order of `taps`."""
        found: dict[str, Tensor] = {}
        outputs = self._run(found.__setitem__, data, *states)
        return (*outputs, *(found[name] for name in self.taps))

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs and of the taps."""
        return [*(tensor.name for tensor in self._outputs), *(TAP_PREFIX + name for name in self.taps)]


class RemoveTapOutputs(ir.passes.InPlacePass):
    """Take the taps away from a graph's outputs; the values inside keep their names.

    An output makes the exporter keep a pair of transpositions that cancel each other. They go as well, and the value
    before them takes the tap's name.

    Requires: nothing.
    Ensures: no output's name begins with `TAP_PREFIX`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove."""
        outputs = model.graph.outputs
        taps = [value for value in outputs if _is_tap(value)]
        for value in taps:
            outputs.remove(value)
        for node in list(model.graph):
            _cancel(node)
        return ir.passes.PassResult(model, bool(taps))

    def ensures(self, model: ir.Model) -> None:
        """Compare names."""
        left = [value.name for value in model.graph.outputs if _is_tap(value)]
        if left:
            raise ir.passes.PostconditionError(f"the outputs {left} are taps")


def _is_tap(value: ir.Value) -> bool:
    return (value.name or "").startswith(TAP_PREFIX)


def _cancel(second: ir.Node) -> None:
    """If `second` undoes the transposition before it, let its users read what comes before both."""
    first = second.inputs[0].producer() if second.inputs and second.inputs[0] is not None else None
    if first is None or first.op_type != "Transpose" or second.op_type != "Transpose":
        return
    there, back = (node.attributes["perm"].as_ints() for node in (first, second))
    between, after, before = first.outputs[0], second.outputs[0], first.inputs[0]
    if before is None or [there[axis] for axis in back] != list(range(len(back))):
        return
    if after.is_graph_output() or before.is_graph_input() or _is_tap(before):
        return
    after.replace_all_uses_with(before)
    names = [value.name for value in (after, between) if _is_tap(value)]
    alone = all(use.node is second for use in between.uses()) and not between.is_graph_output()
    if names and (_is_tap(after) or alone):
        for value in (after, between):
            value.name = f"{value.name}_unused" if value.name == names[0] else value.name
        before.name = names[0]
