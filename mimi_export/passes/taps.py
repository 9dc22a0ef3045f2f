"""Take the taps away from a traced graph (`model.taps`): they stop being outputs, and stay as names inside."""

from __future__ import annotations

import onnx_ir as ir

TAP_PREFIX = "tap_"


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
