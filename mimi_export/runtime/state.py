"""The states of one stream between two calls of its graph, wired by name.

A `StreamState` knows nothing of audio or codes: it feeds `past_*`, keeps `present_*`, and can be copied out and in.
While the window of a young stream still grows, every call has shapes of its own and onnxruntime allocates its outputs;
from then on, and in a ring always, calls are prepared (`buffers`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from mimi_export.errors import GraphError
from mimi_export.runtime.buffers import DTYPES, Array, PreparedStates
from mimi_export.runtime.session import GraphSession, ort_errors


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
        self._growing: dict[str, Any] = {}
        self._prepared: PreparedStates | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        states = self.graph.spec.states
        self.restore({state.name: np.zeros(state.initial_shape(self.batch), DTYPES[state.dtype]) for state in states})

    def snapshot(self) -> dict[str, Array]:
        """Copies of all states, by name."""
        if self._prepared is not None:
            return self._prepared.arrays()
        return {name: np.array(value.numpy()) for name, value in self._growing.items()}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Continue from the states of `snapshot`."""
        if self._full(arrays["key_0"].shape[2]):
            self._prepared, self._growing = PreparedStates(self.graph, arrays), {}
            return
        self._prepared = None
        self._growing = {
            name: ort.OrtValue.ortvalue_from_numpy(array.copy(), self.graph.device, 0) for name, array in arrays.items()
        }

    def step(self, data: Array) -> Array:
        """Run one call.

        Args:
            data: what the graph takes, in its dtype.

        Returns:
            What the graph gives; the states have moved on.

        Raises:
            GraphError: onnxruntime refused; a window's states are as before the call.
        """
        try:
            return self._grow(data) if self._prepared is None else self._prepared.run(data)
        except ort_errors() as error:
            reason = str(error).strip().splitlines()[0]
            raise GraphError(f"{self.graph.path} failed on {data.dtype} {list(data.shape)}: {reason}") from error

    def _full(self, length: int) -> bool:
        return self.graph.spec.shape.layout == "ring" or length == self.graph.spec.window_length

    def _grow(self, data: Array) -> Array:
        """A call whose states have new shapes."""
        spec, session, device = self.graph.spec, self.graph.session, self.graph.device
        binding = session.io_binding()
        binding.bind_cpu_input(spec.data_input.name, np.ascontiguousarray(data))
        for state in spec.states:
            binding.bind_ortvalue_input(state.past.name, self._growing[state.name])
            binding.bind_output(state.present.name, device)
        binding.bind_output(spec.data_output.name)
        session.run_with_iobinding(binding)
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip([*(state.present.name for state in spec.states), spec.data_output.name],
                           binding.get_outputs(), strict=True))  # fmt: skip
        self._growing = {state.name: outputs[state.present.name] for state in spec.states}
        if self._full(self._growing["key_0"].shape()[2]):
            self.restore(self.snapshot())
        return np.array(outputs[names[0]].numpy())
