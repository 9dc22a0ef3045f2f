"""Where a graph goes wrong: PyTorch step functions and ONNX graph in lockstep, compared at every tap.

Before each call both get the same states, those of the step functions. So an error cannot travel from call to call,
and the first place in the order of computation that differs, in the first call where any does, is the guilty one:

    call 0   enc_0 ok   enc_1_b1 ok   …  codes ok      present states ok
    call 1   enc_0 ok   enc_1_b1 PARTS                 -> stage enc_1_b1, which reads past_conv_enc_1_b1_state

Then the step functions try on what the graph may have done to the stage's states: ignored one, or read another of
the same shape. If that gives the graph's own values, it is what happened.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from mimi_export.contract.decibels import decibels
from mimi_export.contract.directory import Artifact
from mimi_export.contract.network import conv_layers
from mimi_export.contract.spec import GraphSpec, conv_state_name
from mimi_export.errors import GraphError
from mimi_export.model.graphs import StreamingGraph, streaming_graph
from mimi_export.parity.metrics import Array
from mimi_export.parity.reference import Reference, ReferenceClip, graph_input
from mimi_export.parity.results import Explanation
from mimi_export.parity.rounded import RoundedProducts
from mimi_export.passes.taps import TAP_PREFIX
from mimi_export.runtime.session import check_started, ort_errors, provider_name
from mimi_export.runtime.state import initial_states

# Agreement at a tap after one call from equal states, in dB, by precision. Rounding leaves 110 dB and more, weights
# of 11 bits 60, of 8 bits 30.
LIMITS = {"fp32": 90.0, "fp16": 40.0, "int8": 15.0}
CALL_FRAMES = (3, 1)  # frames a call of the first and the second walk over the clip
EXTRA_FRAMES = 12  # frames looked at after the first token has left the attention window

States = dict[str, Array]


def explain(artifact: Artifact, reference: Reference, truth: ReferenceClip, provider: str = "cpu") -> list[Explanation]:
    """The first difference of each graph; a graph without one is not in the list."""
    limit = LIMITS.get(artifact.manifest.precision, 60.0)
    found: list[Explanation] = []
    for kind, graph in artifact.manifest.specs.items():
        tapped = TappedGraph(artifact.graph_path(kind), graph, provider=provider)
        lockstep = Lockstep(tapped, streaming_graph(reference.checkpoint, graph), limit)
        ways = (graph.shape.frames_per_call,) if graph.shape.frames_per_call else CALL_FRAMES
        walks = filter(None, (lockstep.walk(truth, frames) for frames in ways))
        found += itertools.islice(walks, 1)
    return found


class Lockstep:
    """One graph twice: as a file and as step functions.

    Args:
        tapped: the file.
        module: the step functions.
        limit: agreement in dB below which they differ.
        rounded: weights of `module` whose products have rounded activations in the file.
    """

    def __init__(
        self, tapped: TappedGraph, module: StreamingGraph, limit: float = 0.0, rounded: Collection[Tensor] = ()
    ) -> None:
        self.tapped, self._module, self._limit, self.rounded = tapped, module, limit, rounded
        self._graph: GraphSpec = module.graph

    def walk(self, truth: ReferenceClip, frames: int) -> Explanation | None:
        """Step through the beginning of a clip until something differs."""
        geometry = self._module.geometry
        last = geometry.sliding_window // geometry.tokens_per_frame + EXTRA_FRAMES
        states, frame = self.tapped.initial_states(), 0
        for index, call in enumerate(truth.calls([frames])):
            if frame >= last:
                break
            data = graph_input(call, self._graph)
            right, present = self.step(data, states)
            got, _ = self.tapped.step(data, states)
            for place in (name for name in self.order(right) if name in got):
                value = agreement(right[place], got[place])
                if not value >= self._limit:
                    tokens = (frame + call.codes.shape[1]) * geometry.tokens_per_frame
                    cause = self._cause(place, got, data, states, index, tokens)
                    return Explanation(self._graph.kind, place, index, frame, value, cause)
            states = present
            frame += call.codes.shape[1]
        return None

    @torch.no_grad()
    def step(
        self, data: Array, states: Mapping[str, Array], otherwise: bool = False
    ) -> tuple[dict[str, Array], States]:
        """One call of the step functions, as `TappedGraph.step`; `otherwise`: see `RoundedProducts`."""
        seen: dict[str, Tensor] = {}
        past = [torch.from_numpy(np.ascontiguousarray(states[state.name])) for state in self._graph.states]
        with RoundedProducts(self.rounded, otherwise):
            outputs = self._module.run(seen.__setitem__, torch.from_numpy(data), *past)
        found = {tensor.name: value.numpy() for tensor, value in zip(self._graph.outputs, outputs, strict=True)}
        present = {state.name: found.pop(state.present.name).copy() for state in self._graph.states}
        places = {name: tensor.numpy() for name, tensor in seen.items()}
        return {**places, **found, **named_present(present)}, present

    def order(self, values: Mapping[str, Array]) -> list[str]:
        """The places of a call in the order of computation: each stage, then the states that it hands on."""
        order: list[str] = []
        for name in values:
            if not name.startswith("present_"):
                order += [name, *(f"present_{state}" for state in self._states_of(name))]
        return order + [name for name in values if name not in order]

    def _states_of(self, stage: str) -> list[str]:
        """The states that a stage reads and writes."""
        names = {f"conv_{stage}_state"}
        if stage.startswith("transformer_"):
            names = {stage.replace("transformer", word) for word in ("key", "value")}
        if stage == "latents" and self._graph.kind == "encoder":
            names = {"conv_ds_state"}
        if stage == self._graph.data_output.name and self._graph.kind == "decoder":
            names = {conv_state_name(conv_layers(self._module.geometry, "decoder")[-1])}
        return [state.name for state in self._graph.states if state.name in names]

    def _cause(self, place: str, got: Mapping[str, Array], data: Array, states: States, call: int, tokens: int) -> str:
        """What may have happened in a call that parts at `place`; `tokens` have passed with it."""
        if place.startswith("present_"):
            name = place.removeprefix("present_")
            zero = " (it is all zero)" if not got[place].any() else ""
            return f"the state {name} is handed on wrong{zero}; what was computed before it is right"
        for text, changed in self._hypotheses(place, states):
            shown, _ = self.step(data, changed)
            if agreement(shown[place], got[place]) >= self._limit:
                return text
        names = " and ".join(self._states_of(place))
        if place == self._graph.data_output.name and not names:
            return "everything before it is right: the quantiser is wrong"
        if call == 0:
            return "already in the first call, so its weights, its arithmetic or the beginning of a stream is wrong"
        window = self._module.geometry.sliding_window
        if place.startswith("transformer_") and tokens > window:
            return f"only once there are more than {window} tokens: the attention window is wrong"
        return f"only after the first call: the state {names} is read wrong" if names else "only after the first call"

    def _hypotheses(self, stage: str, states: States) -> Iterator[tuple[str, States]]:
        """What may have been done to the states that a stage reads."""
        read = self._states_of(stage)
        if len(read) == 2:
            first, second = read
            swapped = {**states, first: states[second], second: states[first]}
            yield f"the states {first} and {second} are swapped", swapped
        for name in read:
            value = states[name]
            if not value.any():
                continue
            yield f"the state {name} is ignored (as if zero)", {**states, name: np.zeros_like(value)}
            for other, candidate in states.items():
                if other != name and candidate.shape == value.shape and candidate.dtype == value.dtype:
                    yield f"the state {other} is read in place of {name}", {**states, name: candidate}
            if value.ndim >= 3 and value.shape[2] > 1:
                for shift in (1, -1):
                    yield f"the state {name} is read shifted by one", {**states, name: np.roll(value, shift, axis=2)}


def named_present(states: Mapping[str, Array]) -> dict[str, Array]:
    """States under the names of the graph's outputs."""
    return {f"present_{name}": value for name, value in states.items()}


def agreement(right: Array, got: Array) -> float:
    """SNR of two tensors; codes and positions agree wholly or not at all; channels may stand last."""
    return agreement_and_gain(right, got)[0]


def agreement_and_gain(right: Array, got: Array) -> tuple[float, float]:
    """The same, and by which share the second as a whole is louder; both to three digits.

    Sums stay in the tensors' own type: for thousands of tensors a call, `metrics.Comparison` takes ten times as long.
    """
    if right.shape != got.shape and right.ndim == 3 and right.shape == got.swapaxes(1, 2).shape:
        got = got.swapaxes(1, 2)
    if right.shape != got.shape:
        return -math.inf, 0.0
    if right.dtype.kind == "i":
        return math.inf if np.array_equal(right, got) else -math.inf, 0.0
    signal, error = right.ravel(), (got - right).ravel()
    power, left = float(signal @ signal), float(error @ error)
    if not math.isfinite(left):
        return -math.inf, 0.0
    return decibels(power, left), float(signal @ error) / power if power else 0.0


class TappedGraph:
    """A session of a graph file that shows its taps (`passes.taps`) as extra outputs; the file stays as it is.

    Any variant may be looked into whose passes kept the value names of the export; taps that it lacks are left out,
    and those that are not in `only`. `GraphError` where the file is no ONNX graph or does not load, `ConfigError` where
    `provider` is not here or does not start.
    """

    def __init__(self, path: Path, spec: GraphSpec, only: tuple[str, ...] | None = None, provider: str = "cpu") -> None:
        self.spec, provider = spec, provider_name(provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            model = onnx.load(path)
            names = [name for node in model.graph.node for name in node.output if name.startswith(TAP_PREFIX)]
            taps = [name.removeprefix(TAP_PREFIX) for name in names]
            self.taps = [name for name in taps if only is None or name in only]
            model.graph.output.extend(onnx.ValueInfoProto(name=TAP_PREFIX + name) for name in self.taps)
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
        except (DecodeError, OSError, RuntimeError, ValueError) as error:
            raise GraphError(f"{path} does not load: {str(error).strip().splitlines()[0]}") from error
        check_started(self._session, provider)

    def initial_states(self) -> States:
        """Zeros that begin a stream, by name: one row, or as many as the graph fixes."""
        return initial_states(self.spec, 1)

    def step(self, data: Array, states: States) -> tuple[dict[str, Array], States]:
        """One call: every place that it shows, by name (taps, outputs), and the states for the next call."""
        feeds = {self.spec.data_input.name: data, **{state.past.name: states[state.name] for state in self.spec.states}}
        outputs = [tensor.name for tensor in self.spec.outputs]
        try:
            values = self._session.run([*outputs, *(TAP_PREFIX + name for name in self.taps)], feeds)
        except ort_errors() as error:
            reason = str(error).strip().splitlines()[0]
            raise GraphError(f"the {self.spec.kind} fails on {list(data.shape)}: {reason}") from error
        places = dict(zip([*outputs, *self.taps], values, strict=True))
        return places, {state.name: places[state.present.name] for state in self.spec.states}
