"""The states of one stream between two calls of its graph, wired by name.

A `StreamState` knows nothing of audio or codes: it feeds `past_*`, keeps `present_*`, and can be copied out and in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mimi_export.errors import GraphError
from mimi_export.runtime.session import GraphSession

Array = npt.NDArray[Any]
_DTYPES: dict[str, type[np.generic]] = {"float32": np.float32, "int64": np.int64}


class StreamState:
    """All past states of one stream (of `batch` rows that step together).

    Args:
        graph: the session that computes.
        batch: rows.
    """

    def __init__(self, graph: GraphSession, batch: int) -> None:
        self.graph = graph
        self.batch = batch
        self._values: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.restore(
            {
                state.name: np.zeros(state.initial_shape(self.batch), _DTYPES[state.dtype])
                for state in self.graph.spec.states
            }
        )

    def snapshot(self) -> dict[str, Array]:
        """Copies of all states, by name."""
        return {name: value.numpy().copy() for name, value in self._values.items()}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Continue from the states of `snapshot`."""
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in arrays.items()}

    def step(self, data: Array) -> Array:
        """Run one call.

        Args:
            data: what the graph takes, in its dtype.

        Returns:
            What the graph gives; the states have moved on.

        Raises:
            GraphError: onnxruntime refused; the states are as before the call.
        """
        spec, session = self.graph.spec, self.graph.session
        binding = session.io_binding()
        binding.bind_cpu_input(spec.data_input.name, data)
        for state in spec.states:
            binding.bind_ortvalue_input(state.past.name, self._values[state.name])
        for tensor in spec.outputs:
            binding.bind_output(tensor.name)
        try:
            session.run_with_iobinding(binding)
        except _run_errors() as error:
            reason = str(error).strip().splitlines()[0]
            raise GraphError(f"{self.graph.path} failed on {data.dtype} {list(data.shape)}: {reason}") from error
        result, *present = binding.get_outputs()
        self._values = {state.name: value for state, value in zip(spec.states, present, strict=True)}
        output: Array = result.numpy()
        return output


def _run_errors() -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidArgument", "RuntimeException", "NotImplemented")
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError)
