"""Look inside a graph: run the file as it is, with named intermediate values as extra outputs.

The model is changed in memory only. It may be any variant whose passes kept the value names of the export
(`mimi_export.model.taps`); taps that a graph does not have are left out and can be asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from mimi_export.contract.spec import GraphSpec
from mimi_export.errors import GraphError
from mimi_export.passes.taps import TAP_PREFIX

Array = npt.NDArray[Any]
States = dict[str, Array]


class TappedGraph:
    """A session of a graph file that shows its taps.

    Args:
        path: the `.onnx` file.
        spec: its inputs and outputs.
        only: taps to show, all that the file has by default.
        threads: threads for one operator.

    Raises:
        GraphError: the file is no ONNX graph or does not load.
    """

    def __init__(
        self, path: str | os.PathLike[str], spec: GraphSpec, only: tuple[str, ...] | None = None, threads: int = 1
    ) -> None:
        self.path, self.spec = Path(path), spec
        try:
            model = onnx.load(self.path)
            names = [name for node in model.graph.node for name in node.output if name.startswith(TAP_PREFIX)]
            self.taps = [name.removeprefix(TAP_PREFIX) for name in names]
            if only is not None:
                self.taps = [name for name in self.taps if name in only]
            model.graph.output.extend(onnx.ValueInfoProto(name=TAP_PREFIX + name) for name in self.taps)
            self._session = _session(model, threads)
        except (DecodeError, OSError, RuntimeError, ValueError) as error:
            raise GraphError(f"{path} does not load: {str(error).strip().splitlines()[0]}") from error

    def initial_states(self, batch: int = 1) -> States:
        """Zeros that begin a stream, by name; a fixed batch stays what it is."""
        kinds = {"float32": np.float32, "int64": np.int64}
        return {state.name: np.zeros(state.initial_shape(batch), kinds[state.dtype]) for state in self.spec.states}

    def step(self, data: Array, states: States) -> tuple[Array, States, dict[str, Array]]:
        """One call: the data output, the states for the next call, and the taps."""
        feeds = {self.spec.data_input.name: data, **{state.past.name: states[state.name] for state in self.spec.states}}
        names = [tensor.name for tensor in self.spec.outputs] + [TAP_PREFIX + name for name in self.taps]
        values = dict(zip(names, self._session.run(names, feeds), strict=True))
        present = {state.name: values[state.present.name] for state in self.spec.states}
        return values[self.spec.data_output.name], present, {name: values[TAP_PREFIX + name] for name in self.taps}


def _session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
