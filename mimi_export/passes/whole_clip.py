"""Turn a streaming graph into one for whole clips: the zeros that begin a stream move inside, what it hands on goes.

    data ──► streaming graph ──► result          data ──► Shape[0] ──► zeros of each state
    past_* ──►               ──► present_*       data ──► Pad ──► streaming graph ──► result

Not one weight and not one operator between data and result is touched, so a whole clip gives what one call of the
stream gives that begins with it, to the last bit, in whatever precision the streaming graph is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from mimi_export.contract.spec import BATCH, PAST, GraphSpec, StateSpec
from mimi_export.errors import ConfigError
from mimi_export.passes.weights import new_initializer

OLDEST_OPSET = 18  # Shape of a part of a shape, Pad of one axis


class EncloseStates(ir.passes.InPlacePass):
    """Replace the states of a streaming graph by the zeros that begin a stream.

    Requires: the inputs and outputs of `graph`; opset 18 or later; the window layout, because a ring holds a fixed
        number of tokens.
    Ensures: the only input and output are those of the data.

    Args:
        graph: inputs and outputs of the streaming graph.
    """

    def __init__(self, graph: GraphSpec) -> None:
        super().__init__()
        if graph.shape.layout != "window":
            raise ConfigError(f"a whole clip needs graphs of the window layout, these have {graph.shape.layout}")
        self.graph = graph

    def requires(self, model: ir.Model) -> None:
        """Compare names, and look at the opset."""
        names = [value.name for value in [*model.graph.inputs, *model.graph.outputs]]
        wanted = [tensor.name for tensor in [*self.graph.inputs, *self.graph.outputs]]
        if names != wanted:
            raise ir.passes.PreconditionError(f"the graph has inputs and outputs {names}, expected {wanted}")
        _require_opset(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put zeros in the place of every past tensor and drop every present one."""
        graph = model.graph
        inputs = {str(value.name): value for value in graph.inputs}
        first = graph[0]
        batch = ir.node("Shape", [inputs[self.graph.data_input.name]], {"start": 0, "end": 1}, name="batch_size")
        batch.outputs[0].name = "batch_size"
        graph.insert_before(first, batch)
        for state in self.graph.states:
            past = inputs[state.past.name]
            zeros = _zeros(graph, first, state, batch.outputs[0])
            past.replace_all_uses_with(zeros)
            graph.inputs.remove(past)
            zeros.name = str(past.name)
        del graph.outputs[1:]
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """Count."""
        names = [value.name for value in [*model.graph.inputs, *model.graph.outputs]]
        if names != [self.graph.data_input.name, self.graph.data_output.name]:
            raise ir.passes.PostconditionError(f"inputs and outputs are {names}, expected those of the data alone")


class PadToFrames(ir.passes.InPlacePass):
    """Let the first input have any length: zeros are appended until it is a whole number of frames.

    Requires: the first input is `[batch, 1, samples]`; opset 18 or later.
    Ensures: it keeps its name.

    Args:
        frame_size: samples of a frame.
    """

    def __init__(self, frame_size: int) -> None:
        super().__init__()
        self.frame_size = frame_size

    def requires(self, model: ir.Model) -> None:
        """Look at the opset."""
        _require_opset(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the padding before everything else."""
        graph = model.graph
        data = graph.inputs[0]
        readers = list(data.uses())
        first = graph[0]
        length = ir.node("Shape", [data], {"start": 2, "end": 3}, name="num_samples")
        # an integer Mod has the sign of its divisor: -length mod frame_size is what is missing
        negative = ir.node("Neg", [length.outputs[0]], name="num_samples_negative")
        missing = ir.node(
            "Mod", [negative.outputs[0], _constant(graph, "samples_per_frame", [self.frame_size])], name="num_missing"
        )
        pads = ir.node(
            "Concat", [_constant(graph, "pad_nothing", [0]), missing.outputs[0]], {"axis": 0}, name="pad_samples"
        )
        padded = ir.node(
            "Pad", [data, pads.outputs[0], None, _constant(graph, "pad_axis", [2])], {"mode": "constant"},
            name="whole_frames",
        )  # fmt: skip
        for node in (length, negative, missing, pads, padded):
            node.outputs[0].name = str(node.name)
            graph.insert_before(first, node)
        padded.outputs[0].type = data.type
        for reader, index in readers:
            reader.replace_input_with(index, padded.outputs[0])
        return ir.passes.PassResult(model, True)


def _zeros(graph: ir.Graph, before: ir.Node, state: StateSpec, batch: ir.Value) -> ir.Value:
    """Zeros of a state's initial shape for a batch known at run time."""
    if state.past_shape[0] != BATCH or state.dtype != "float32":
        shown = f"{state.dtype} {list(state.past_shape)}"
        raise ConfigError(f"the state {state.name} is {shown}, expected float32 with a row for each stream")
    sizes = [0 if size == PAST else int(size) for size in state.past_shape[1:]]
    shape = ir.node(
        "Concat", [batch, _constant(graph, f"{state.name}_sizes", sizes)], {"axis": 0}, name=f"{state.name}_shape"
    )
    shape.outputs[0].name = f"{state.name}_shape"
    zeros = ir.node("ConstantOfShape", [shape.outputs[0]], name=f"{state.name}_zeros")  # float32 0 by default
    zeros.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, [shape, zeros])
    return zeros.outputs[0]


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    return new_initializer(graph, name, np.array(values, np.int64))


def _require_opset(model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise ir.passes.PreconditionError(f"the graph has opset {opset}, expected {OLDEST_OPSET} or later")
