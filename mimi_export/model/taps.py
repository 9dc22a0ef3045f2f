"""Names inside a graph: intermediate results that keep a name of their own in the ONNX file.

A graph is traced with its taps as extra outputs, so that the exporter writes each as a value called `tap_<name>`;
then the outputs are taken away again. What stays is a name and costs nothing: the graph has the same nodes as without
taps. Passes keep value names, so the same place can be looked at in every variant made from the graph
(`parity.explain`). A tap is `[B, C, T]` or `[B, T, C]`, as the graph happens to hold it.
"""

from __future__ import annotations

from torch import Tensor, nn

from mimi_export.model.graphs import StreamingGraph
from mimi_export.passes.taps import TAP_PREFIX


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
