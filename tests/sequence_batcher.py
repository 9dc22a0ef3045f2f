"""A small model of Triton: its sequence batcher (`oldest`, implicit state) before onnxruntime, as `config.pbtxt` says.

It keeps to what Triton's own sources do where it could hurt a stream: memory of a new sequence is not cleared unless
there is an `initial_state`; inputs and outputs of states are paired by alphabetical order; a batch takes requests of
different sequences as they came, in any rows; sequences beyond the slots wait; one that is idle for too long is ended.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from helpers import session

DTYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64}
ORT = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}


@dataclass
class Request:
    sequence: int
    data: np.ndarray
    start: bool = False
    end: bool = False
    output: np.ndarray | None = None
    error: str | None = None


@dataclass
class Sequence:
    number: int
    seen: int  # microseconds
    waiting: list[Request] = field(default_factory=list)
    slot: int | None = None
    states: dict[str, np.ndarray] = field(default_factory=dict)


class Triton:
    """One model; `config` is the parsed `ModelConfig`, time only passes by `sleep`."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.config, self.now, self.batches = config, 0, []
        (version,) = [path for path in folder.iterdir() if path.name.isdecimal()]
        self.session = session(version / (config.default_model_filename or "model.onnx"))
        self._check_as_the_backend_does()
        self._inputs = sorted(config.sequence_batching.state, key=lambda state: state.input_name)
        self._outputs = sorted(state.output_name for state in config.sequence_batching.state)
        self._memory: dict[tuple[int, str], np.ndarray] = {}
        self._sequences: dict[int, Sequence] = {}
        self._slots = set(range(config.sequence_batching.oldest.max_candidate_sequences))
        self._queue: list[tuple[Sequence, Request]] = []  # one request of a sequence at a time
        self._backlog: list[Sequence] = []

    def _check_as_the_backend_does(self) -> None:
        config, batching = self.config, self.config.sequence_batching
        assert config.backend == "onnxruntime"
        assert batching.WhichOneof("strategy_choice") == "oldest"
        assert not batching.control_input
        assert not config.model_warmup  # there is no state to write then, and the backend gives an error
        inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}
        assert len(config.input) + len(batching.state) == len(inputs)
        for one in config.input:
            self._check(one, inputs[one.name], exact=False)
        for one in config.output:
            self._check(one, outputs[one.name], exact=True)
        for state in batching.state:
            self._check(state, inputs[state.input_name], exact=False)
            self._check(state, outputs[state.output_name], exact=True)
            for initial in state.initial_state:
                assert (initial.data_type, initial.dims) == (state.data_type, state.dims)
                assert initial.name

    def _check(self, wanted: Any, tensor: Any, exact: bool) -> None:
        assert ORT[self._name(wanted)] == tensor.type
        batch, *dims = [-1 if isinstance(dim, str) else dim for dim in tensor.shape]
        assert batch == -1, f"{tensor.name} has a fixed batch"
        assert len(dims) == len(wanted.dims)
        for one, other in zip(wanted.dims, dims, strict=True):
            assert one == other or (other == -1 and not exact), (tensor.name, list(wanted.dims), dims)

    def _name(self, message: Any) -> str:
        return message.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[message.data_type].name

    def sleep(self, seconds: float) -> None:
        """Let time pass; sequences that nothing came for are ended."""
        self.now += int(seconds * 1e6)
        for sequence in list(self._sequences.values()):
            idle = self.now - sequence.seen > self.config.sequence_batching.max_sequence_idle_microseconds
            if idle and not sequence.waiting and all(one is not sequence for one, _ in self._queue):
                self._end(sequence)

    def send(self, request: Request) -> Request:
        """Take a request; `run` answers it."""
        for dim, wanted in zip(request.data.shape[1:], self.config.input[0].dims, strict=True):
            assert wanted in (-1, dim), f"a request of {request.data.shape}, expected {list(self.config.input[0].dims)}"
        sequence = self._sequences.get(request.sequence)
        if request.start and sequence is None:
            sequence = self._sequences[request.sequence] = Sequence(request.sequence, self.now)
            self._backlog.append(sequence)
        if sequence is None:
            request.error = "must specify the START flag on the first request of the sequence"
            return request
        sequence.seen = self.now
        sequence.waiting.append(request)
        self._schedule()
        return request

    def _schedule(self) -> None:
        while self._backlog and self._slots:
            sequence = self._backlog.pop(0)
            sequence.slot = min(self._slots)
            self._slots.remove(sequence.slot)
        busy = {sequence.number for sequence, _ in self._queue}
        for sequence in self._sequences.values():
            if sequence.slot is not None and sequence.waiting and sequence.number not in busy:
                self._queue.append((sequence, sequence.waiting.pop(0)))

    def run(self) -> bool:
        """One call of the graph with what has waited longest; whether there was any."""
        batch = list(
            itertools.takewhile(
                lambda pair: pair[1].data.shape == self._queue[0][1].data.shape,
                self._queue[: self.config.max_batch_size],
            )
        )
        if not batch:
            return False
        del self._queue[: len(batch)]
        self.batches.append(len(batch))
        for sequence, request in batch:
            if request.start:
                sequence.states = {state.input_name: self._initial(sequence.slot, state) for state in self._inputs}
        feeds = {
            state.input_name: np.concatenate([sequence.states[state.input_name] for sequence, _ in batch])
            for state in self._inputs
        }
        feeds[self.config.input[0].name] = np.concatenate([request.data for _, request in batch])
        output, *present = self.session.run([self.config.output[0].name, *self._outputs], feeds)
        for row, (sequence, request) in enumerate(batch):
            request.output = output[row : row + 1]
            for state, after in zip(self._inputs, present, strict=True):
                sequence.states[state.input_name] = after[row : row + 1]
            sequence.seen = self.now
            if request.end:
                self._end(sequence)
        self._schedule()
        return True

    def _initial(self, slot: int, state: Any) -> np.ndarray:
        dims = (1, *state.dims)
        if state.initial_state:
            assert state.initial_state[0].zero_data
            return np.zeros(dims, DTYPES[self._name(state)])
        return self._memory.get((slot, state.input_name), np.full(dims, 77, DTYPES[self._name(state)]))

    def _end(self, sequence: Sequence) -> None:
        self._memory |= {(sequence.slot, name): array for name, array in sequence.states.items()}
        if sequence.slot is not None:
            self._slots.add(sequence.slot)
        del self._sequences[sequence.number]
