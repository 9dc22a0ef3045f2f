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
from mimi_export.passes.rewriting import Builder, new_initializer, require_opset

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
        require_opset(model, OLDEST_OPSET)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put zeros in the place of every past tensor and drop every present one."""
        graph = model.graph
        inputs = {str(value.name): value for value in graph.inputs}
        build = Builder()
        data = inputs[self.graph.data_input.name]
        batch = build("Shape", [data], "batch_size", {"start": 0, "end": 1}, "batch_size")
        for state in self.graph.states:
            past = inputs[state.past.name]
            zeros = _zeros(graph, build, state, batch)
            past.replace_all_uses_with(zeros)
            graph.inputs.remove(past)
            zeros.name = str(past.name)
        graph.insert_before(graph[0], build.nodes)
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
        require_opset(model, OLDEST_OPSET)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the padding before everything else."""
        graph = model.graph
        data = graph.inputs[0]
        readers = list(data.uses())
        build = Builder()
        length = build("Shape", [data], "num_samples", {"start": 2, "end": 3}, "num_samples")
        # an integer Mod has the sign of its divisor: -length mod frame_size is what is missing
        negative = build("Neg", [length], "num_samples_negative", output="num_samples_negative")
        frame = _constant(graph, "samples_per_frame", [self.frame_size])
        missing = build("Mod", [negative, frame], "num_missing", output="num_missing")
        nothing = _constant(graph, "pad_nothing", [0])
        pads = build("Concat", [nothing, missing], "pad_samples", {"axis": 0}, "pad_samples")
        axis = _constant(graph, "pad_axis", [2])
        padded = build("Pad", [data, pads, None, axis], "whole_frames", {"mode": "constant"}, "whole_frames")
        padded.type = data.type
        graph.insert_before(graph[0], build.nodes)
        for reader, index in readers:
            reader.replace_input_with(index, padded)
        return ir.passes.PassResult(model, True)


def _zeros(graph: ir.Graph, build: Builder, state: StateSpec, batch: ir.Value) -> ir.Value:
    """Zeros of a state's initial shape for a batch known at run time."""
    if state.past_shape[0] != BATCH or state.dtype != "float32":
        shown = f"{state.dtype} {list(state.past_shape)}"
        raise ConfigError(f"the state {state.name} is {shown}, expected float32 with a row for each stream")
    sizes = [0 if size == PAST else int(size) for size in state.past_shape[1:]]
    name = f"{state.name}_shape"
    shape = build("Concat", [batch, _constant(graph, f"{state.name}_sizes", sizes)], name, {"axis": 0}, name)
    zeros = build("ConstantOfShape", [shape], f"{state.name}_zeros")  # float32 0 by default
    zeros.type = ir.TensorType(ir.DataType.FLOAT)
    return zeros


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    return new_initializer(graph, name, np.array(values, np.int64))
