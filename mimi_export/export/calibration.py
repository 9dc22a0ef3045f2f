"""Rounding a graph's weights to 8 bits by what they are multiplied with.

Sound streams through the fp32 graphs. Every tensor that a product reads is summed up as x·xᵀ, and the weights are
rounded for it (`passes.feedback`). By default the sound is generated speech: nothing to download, the same everywhere.
The same sound gives the same codes on one machine with one number of threads; other processors add up in other orders
and may round a weight between two codes to the other one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GraphSpec
from mimi_export.media.audio import read_audio
from mimi_export.media.signals import speech_like
from mimi_export.passes.feedback import Gram, round_with_feedback
from mimi_export.passes.rewriting import Matmul, find_matmuls
from mimi_export.passes.rounding import Rounded

SEED = 101
SECONDS = 60.0  # of generated speech for the real geometry; narrower ones have fewer inputs to tell apart
REAL_WIDTH = 512
LEAST_SECONDS = 4.0
FRAMES_PER_CALL = 25  # where the graph leaves it free
WEIGHTS_PER_LINE = 10  # of progress
ROWS_PER_FRAME = 16  # of one tensor; those next to the waveform have hundreds

Array = npt.NDArray[Any]


class Calibration:
    """Sound for all graphs; the decoder is fed with what the encoder made of it, so the encoder comes first.

    Args:
        geometry: of the model.
        files: recordings; generated speech without any.

    Raises:
        AudioError: a recording cannot be read.
    """

    def __init__(self, geometry: Geometry, files: Sequence[str] = ()) -> None:
        if files:
            sound = np.concatenate([read_audio(file, geometry.sampling_rate) for file in files])
            self._source = ", ".join(Path(file).name for file in files)
        else:
            seconds = max(LEAST_SECONDS, min(SECONDS, SECONDS * geometry.hidden_size / REAL_WIDTH))
            sound = speech_like(seconds, SEED, geometry.sampling_rate)
            self._source = f"generated speech, {seconds:g} s"
        frames = max(1, len(sound) // geometry.frame_size)
        self._sound: Array = np.zeros((1, 1, frames * geometry.frame_size), np.float32)
        self._sound[0, 0, : len(sound)] = sound[: self._sound.shape[2]]
        self._heard = {"input_values": self._sound}  # data of both graphs, by name

    def record(self) -> dict[str, Any]:
        """For the manifest: what was heard, and the SHA-256 of its samples (float32, little-endian)."""
        digest = hashlib.sha256(self._sound.astype("<f4").tobytes()).hexdigest()
        return {"rounding": "feedback", "calibration": self._source, "sha256": digest}

    def round(self, model: ir.Model, spec: GraphSpec, names: set[str], progress: Progress) -> dict[str, Rounded]:
        """Codes of the named products of a float32 graph.

        Args:
            model: the graph.
            spec: its inputs and outputs.
            names: weights to round.
            progress: told of each step.
        """
        matmuls = {name: matmul for name, matmul in find_matmuls(model).items() if name in names}
        progress(f"calibrating the {spec.kind}")
        grams = self._listen(model, spec, matmuls)
        rounded = {}
        for number, (name, matmul) in enumerate(matmuls.items()):
            if number % WEIGHTS_PER_LINE == 0:
                progress(f"rounding the {spec.kind}, {number} of {len(matmuls)} weights done")
            rounded[name] = round_with_feedback(matmul.matrix(), grams[str(matmul.x.name)])
        return rounded

    def _listen(self, model: ir.Model, spec: GraphSpec, matmuls: dict[str, Matmul]) -> dict[str, Gram]:
        grams = {str(matmul.x.name): Gram(len(matmul.matrix())) for matmul in matmuls.values()}
        session = _session_with(model, grams)
        data, axis = self._heard[spec.data_input.name], spec.data_input.time_axis
        rows = spec.shape.rows or 1
        states = {state.past.name: np.zeros(state.initial_shape(rows), np.dtype(state.dtype)) for state in spec.states}
        frames = spec.shape.frames_per_call or FRAMES_PER_CALL
        results: dict[str, list[Array]] = {tensor.name: [] for tensor in spec.data_outputs}
        for call in _calls(data, frames * spec.unit, axis):
            feeds = {spec.data_input.name: np.repeat(call, rows, axis=0), **states}
            values = dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True))
            states = {state.past.name: values[state.present.name] for state in spec.states}
            for name, parts in results.items():
                parts.append(values[name][:1])
            for name, gram in grams.items():
                seen = values[name].reshape(-1, values[name].shape[-1])
                most = ROWS_PER_FRAME * max(1, call.shape[axis] // spec.unit)
                gram.push(seen[:: -(-len(seen) // most)])
        for tensor in spec.data_outputs:
            self._heard[tensor.name] = np.concatenate(results[tensor.name], tensor.time_axis)
        return grams


def _calls(data: Array, size: int, axis: int) -> Iterable[Array]:
    """Whole calls; what is left at the end is too short for a graph that fixes its length."""
    missing = max(0, size - data.shape[axis])
    data = np.pad(data, [(0, missing if place == axis else 0) for place in range(3)])
    starts = range(0, data.shape[axis] - size + 1, size)
    return (data.take(range(start, start + size), axis) for start in starts)


def _session_with(model: ir.Model, names: Iterable[str]) -> ort.InferenceSession:
    """A session of the graph with values inside it as further outputs."""
    model = model.clone()
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    for name in names:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        if not values[name].is_graph_output():
            model.graph.outputs.append(values[name])
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
