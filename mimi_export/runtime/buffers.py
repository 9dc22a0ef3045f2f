"""Prepared calls: buffers and bindings that are made once, so that a call copies only its data and runs.

States of fixed shape live in two sets, A and B. One call reads A and writes B, the next reads B and writes A, and
both bindings are ready. The keys and values of a ring are one set only, bound in and out: the graph writes the new
slots in place, and onnxruntime then skips the copy of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mimi_export.contract.spec import GraphSpec, StateSpec
from mimi_export.runtime.session import GraphSession

Array = npt.NDArray[Any]
DTYPES: dict[str, type[np.generic]] = {"float32": np.float32, "int64": np.int64}


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
        self._session = graph.session
        self._input = np.zeros(shape, DTYPES[spec.data_input.dtype])
        self._output = np.zeros(_output_shape(spec, shape), DTYPES[spec.data_output.dtype])
        self._held = ort.OrtValue.ortvalue_from_numpy(self._input), ort.OrtValue.ortvalue_from_numpy(self._output)
        self._binding = graph.session.io_binding()
        self._binding.bind_ortvalue_input(spec.data_input.name, self._held[0])
        self._binding.bind_ortvalue_output(spec.data_output.name, self._held[1])
        for state in spec.states:
            self._binding.bind_ortvalue_input(state.past.name, past[state.name])
            self._binding.bind_ortvalue_output(state.present.name, present[state.name])

    def run(self, data: Array) -> Array:
        """Run on `data`; the result is a copy of its own."""
        np.copyto(self._input, data)
        self._session.run_with_iobinding(self._binding)
        result: Array = self._output.copy()
        return result


class PreparedStates:
    """The states of a stream whose shapes no longer change.

    Args:
        graph: the session that computes.
        arrays: the states to begin with, by name; they are copied.
    """

    def __init__(self, graph: GraphSession, arrays: Mapping[str, Array]) -> None:
        self._graph = graph
        first = {name: _value(array.copy(), graph.device) for name, array in arrays.items()}
        second = {
            state.name: first[state.name]
            if in_place(graph.spec, state)
            else _value(np.zeros_like(arrays[state.name]), graph.device)
            for state in graph.spec.states
        }
        self._sides = [first, second]
        self._calls: list[dict[tuple[int, ...], BoundCall]] = [{}, {}]
        self._side = 0

    def arrays(self) -> dict[str, Array]:
        """Copies of the present states, by name."""
        return {name: np.array(value.numpy()) for name, value in self._sides[self._side].items()}

    def run(self, data: Array) -> Array:
        """Run one call; the result is a copy of its own."""
        side, calls = self._side, self._calls[self._side]
        call = calls.get(data.shape)
        if call is None:
            call = BoundCall(self._graph, self._sides[side], self._sides[1 - side], data.shape)
            calls[data.shape] = call
        result = call.run(data)
        self._side = 1 - side
        return result


def in_place(spec: GraphSpec, state: StateSpec) -> bool:
    """Whether a graph updates this state where it lies: the slots of a ring."""
    return spec.shape.layout == "ring" and state.kind in ("key", "value")


def _value(array: Array, device: str) -> Any:
    """An OrtValue over `array` on the processor, or a copy of it on an accelerator."""
    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)


def _output_shape(spec: GraphSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the data output for that of the data input."""
    if spec.kind == "encoder":
        return (shape[0], spec.shape.num_codebooks, shape[2] // spec.frame_size)
    return (shape[0], 1, shape[2] * spec.frame_size)
