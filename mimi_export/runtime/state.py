"""The states of one stream between two calls of its graph, wired by name.

A `StreamState` knows nothing of audio or codes: it feeds `past_*`, keeps `present_*`, and can be copied out and in.

In the first call of a window onnxruntime allocates its outputs (and in those of earlier versions while they grow). From
then on, and in a ring always, shapes are fixed and calls are bound once: the states live in two sets, and each call
reads one and writes the other. The keys and values of a ring are one set only, bound in and out: the graph writes the
new slots in place, and onnxruntime then skips the copy of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mimi_export.contract.spec import BATCH, FRAMES, SAMPLES, GraphSpec, StateSpec
from mimi_export.runtime.session import GraphSession

Array = npt.NDArray[Any]


class BoundCall:
    """One binding with buffers for its data: copy in, run, copy out.

    Args:
        graph: the session that computes.
        past, present: a value for each state, by name; the same object in both is updated in place.
        shape: of the data input.
    """

    def __init__(
        self, graph: GraphSession, past: Mapping[str, Any], present: Mapping[str, Any], shape: tuple[int, ...]
    ) -> None:
        spec = graph.spec
        self._graph = graph
        self._input: Array = np.zeros(shape, spec.data_input.dtype)
        shapes = output_shapes(spec, shape)
        self._outputs: list[Array] = [np.zeros(shapes[tensor.name], tensor.dtype) for tensor in spec.data_outputs]
        self._held = [ort_value(array) for array in (self._input, *self._outputs)]
        self._binding = graph.session.io_binding()
        self._binding.bind_ortvalue_input(spec.data_input.name, self._held[0])
        for tensor, value in zip(spec.data_outputs, self._held[1:], strict=True):
            self._binding.bind_ortvalue_output(tensor.name, value)
        for state in spec.states:
            self._binding.bind_ortvalue_input(state.past.name, past[state.name])
            self._binding.bind_ortvalue_output(state.present.name, present[state.name])

    def run(self, data: Array) -> tuple[Array, ...]:
        """Run on `data`; the data outputs are copies of their own. `GraphError` where onnxruntime refuses."""
        np.copyto(self._input, data)
        self._graph.run(self._binding, data)
        return tuple(output.copy() for output in self._outputs)


class StreamState:
    """All past states of one stream (of `batch` rows that step together).

    Args:
        graph: the session that computes.
        batch: rows.

    Raises:
        ConfigError: the graph is fixed to another batch.
    """

    def __init__(self, graph: GraphSession, batch: int) -> None:
        graph.spec.check_rows(batch)
        self.graph = graph
        self.batch = batch
        self._now: dict[str, Any] = {}
        self._next: dict[str, Any] | None = None  # the set that the next call writes; `None` until it is full
        self._calls: tuple[dict[tuple[int, ...], BoundCall], ...] = ()  # from `_now` to `_next`, and back
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.restore(initial_states(self.graph.spec, self.batch))

    def snapshot(self) -> dict[str, Array]:
        """Copies of all states, by name."""
        return {name: np.array(value.numpy()) for name, value in self._now.items()}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Continue from the states of `snapshot`."""
        spec, device = self.graph.spec, self.graph.device
        self._now = {name: ort_value(array.copy(), device) for name, array in arrays.items()}
        self._next = None
        if spec.shape.layout == "ring" or arrays["key_0"].shape[2] == spec.window_length:
            other = {state.name: ort_value(np.zeros_like(arrays[state.name]), device) for state in moving(spec)}
            self._next, self._calls = self._now | other, ({}, {})

    def step(self, data: Array) -> tuple[Array, ...]:
        """Run one call.

        Args:
            data: what the graph takes, in its dtype.

        Returns:
            The data outputs; the states have moved on.

        Raises:
            GraphError: onnxruntime refused; a window's states are as before the call.
        """
        return self._grow(data) if self._next is None else self._bound(self._next, data)

    def _bound(self, target: dict[str, Any], data: Array) -> tuple[Array, ...]:
        """A call from one set of states to the other, which then change places."""
        there, back = self._calls
        if data.shape not in there:
            there[data.shape] = BoundCall(self.graph, self._now, target, data.shape)
        result = there[data.shape].run(data)
        self._now, self._next, self._calls = target, self._now, (back, there)
        return result

    def _grow(self, data: Array) -> tuple[Array, ...]:
        """A call whose states have new shapes."""
        spec, binding = self.graph.spec, self.graph.session.io_binding()
        binding.bind_cpu_input(spec.data_input.name, np.ascontiguousarray(data))
        for tensor in spec.data_outputs:
            binding.bind_output(tensor.name)
        for state in spec.states:
            binding.bind_ortvalue_input(state.past.name, self._now[state.name])
            binding.bind_output(state.present.name, self.graph.device)
        self.graph.run(binding, data)
        values = binding.get_outputs()  # in the order in which they were bound
        count = len(spec.data_outputs)
        self._now = dict(zip((state.name for state in spec.states), values[count:], strict=True))
        if self._now["key_0"].shape()[2] == spec.window_length:
            self.restore(self.snapshot())
        return tuple(np.array(value.numpy()) for value in values[:count])


def initial_states(spec: GraphSpec, batch: int) -> dict[str, Array]:
    """The zeros that begin a stream of `batch` rows, by name."""
    return {state.name: np.zeros(state.initial_shape(batch), state.dtype) for state in spec.states}


def moving(spec: GraphSpec) -> list[StateSpec]:
    """The states that a call writes to another place: all but the slots of a ring, which it updates where they lie."""
    return [state for state in spec.states if spec.shape.layout == "window" or state.kind not in ("key", "value")]


def output_shapes(spec: GraphSpec, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the data outputs, by name, for that of the data input."""
    frames = shape[spec.data_input.time_axis] // spec.unit
    sizes = {BATCH: shape[0], FRAMES: frames, SAMPLES: frames * spec.frame_size}
    return {
        tensor.name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
        for tensor in spec.data_outputs
    }


def ort_value(array: Array, device: str = "cpu") -> Any:
    """An OrtValue over `array` on the processor, or a copy of it on an accelerator."""
    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)
