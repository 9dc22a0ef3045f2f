"""A graph run the fastest way a client can: buffers and bindings made once, then nothing but the run itself.

States have the shapes of a stream of a given age, reached at once instead of by running. What happens between two
calls depends on the shapes:

    ring        keys and values lie in one buffer, bound in and out; the other states in two that change places
    window      once it is full: two buffers that change places
    growing     a window that is not full yet, and the public design for ever: the age is held, so every call has the
                same past and writes its present aside. A real client would have to allocate, too; that is not charged
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import BATCH, PAST, PRESENT, GraphSpec, TensorSpec
from mimi_export.media.signals import speech_like

Array = NDArray[Any]
Growth = Literal["bounded", "unbounded"]
_DTYPES = {"float32": np.float32, "int64": np.int64}
_STATE_LEVEL = 0.1
_CLIP_SECONDS = 4.0


def tokens_at(geometry: Geometry, age_seconds: float) -> int:
    """Transformer tokens of a stream of an age, in whole frames."""
    return round(age_seconds * geometry.frame_rate) * geometry.tokens_per_frame


def state_shapes(
    spec: GraphSpec, geometry: Geometry, batch: int, age_seconds: float, growth: Growth = "bounded"
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Past and present shape of every state, by name, for a call on a stream of an age.

    Args:
        spec: the graph.
        geometry: sizes of the model.
        batch: rows.
        age_seconds: of the stream.
        growth: whether keys and values stop growing at the window, or never (the public design).
    """
    tokens = tokens_at(geometry, age_seconds)
    new = (spec.shape.frames_per_call or 1) * geometry.tokens_per_frame
    most = geometry.sliding_window - 1
    past, present = (tokens, tokens + new) if growth == "unbounded" else (min(tokens, most), min(tokens + new, most))
    sizes: dict[int | str, int] = {BATCH: batch, PAST: past, PRESENT: present}
    return {state.name: (_sized(state.past_shape, sizes), _sized(state.present_shape, sizes)) for state in spec.states}


def states_at(
    spec: GraphSpec, geometry: Geometry, batch: int, age_seconds: float, growth: Growth = "bounded", seed: int = 0
) -> dict[str, Array]:
    """States of a stream of an age, by name: random numbers of a quiet signal's level, and the true position."""
    rng = np.random.default_rng(seed)
    states: dict[str, Array] = {}
    for state in spec.states:
        shape, _ = state_shapes(spec, geometry, batch, age_seconds, growth)[state.name]
        if state.kind == "position":
            states[state.name] = np.full(shape, tokens_at(geometry, age_seconds), np.int64)
        else:
            states[state.name] = rng.standard_normal(shape, np.float32) * np.float32(_STATE_LEVEL)
    return states


def call_data(spec: GraphSpec, geometry: Geometry, batch: int, audio: Array | None = None) -> Array:
    """Data of one call: speech (its loudest stretch, every row another) or uniformly random codes.

    Args:
        spec: the graph.
        geometry: sizes of the model.
        batch: rows.
        audio: `[n]`, at least one call of samples; generated speech unless given.
    """
    frames = spec.shape.frames_per_call or 1
    if spec.kind == "decoder":
        return np.random.default_rng(0).integers(0, geometry.codebook_size, (batch, spec.shape.num_codebooks, frames))
    samples = frames * geometry.frame_size
    clip = speech_like(_CLIP_SECONDS, 0, geometry.sampling_rate) if audio is None else audio
    starts = np.arange(batch) * 480 % max(1, len(clip) - samples)
    loudest = int(np.argmax(np.abs(clip)))
    first = np.minimum((starts + max(0, loudest - samples // 2)) % max(1, len(clip) - samples + 1), len(clip) - samples)
    return np.stack([clip[start : start + samples] for start in first])[:, None].astype(np.float32)


class BoundGraph:
    """A session with everything bound; `step` is one call.

    Args:
        session: of the graph.
        spec: the graph's inputs and outputs.
        geometry: sizes of the model.
        data: what every call gets, `[B, …]`.
        age_seconds: of the stream.
        growth: see `state_shapes`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        geometry: Geometry,
        data: Array,
        age_seconds: float,
        growth: Growth = "bounded",
    ) -> None:
        self._session = session
        batch = data.shape[0]
        shapes = state_shapes(spec, geometry, batch, age_seconds, growth)
        first = {name: _value(array) for name, array in states_at(spec, geometry, batch, age_seconds, growth).items()}
        second = dict(first)
        steady = all(past == present for past, present in shapes.values())
        for state in spec.states:
            in_place = spec.shape.layout == "ring" and state.kind in ("key", "value")
            if not in_place:
                second[state.name] = _value(np.zeros(shapes[state.name][1], _DTYPES[state.dtype]))
        self._data = _value(data)
        self.output = np.zeros(output_shape(spec, geometry, data.shape), _DTYPES[spec.data_output.dtype])
        self._output = _value(self.output)
        self._bindings = [self._bind(spec, first, second)]
        self._bindings.append(self._bind(spec, second, first) if steady else self._bindings[0])
        self._side = 0

    def step(self) -> None:
        """One call; the data output is in `output`."""
        self._session.run_with_iobinding(self._bindings[self._side])
        self._side ^= 1

    def _bind(self, spec: GraphSpec, past: dict[str, Any], present: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(spec.data_input.name, self._data)
        binding.bind_ortvalue_output(spec.data_output.name, self._output)
        for state in spec.states:
            binding.bind_ortvalue_input(state.past.name, past[state.name])
            binding.bind_ortvalue_output(state.present.name, present[state.name])
        return binding


def output_shape(spec: GraphSpec, geometry: Geometry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the data output for that of the data input."""
    if spec.kind == "encoder":
        return shape[0], spec.shape.num_codebooks, shape[2] // geometry.frame_size
    return shape[0], 1, shape[2] * geometry.frame_size


def feeds(spec: GraphSpec, data: Array, states: dict[str, Array]) -> dict[str, Array]:
    """The feeds of one call by input name."""
    inputs: list[TensorSpec] = spec.inputs
    return {inputs[0].name: data, **{state.past.name: states[state.name] for state in spec.states}}


def _sized(shape: tuple[int | str, ...], sizes: dict[int | str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(array)
