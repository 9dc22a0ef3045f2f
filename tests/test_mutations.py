"""Is parity able to fail? Every way to break the streaming state must be seen, in both graphs and both layouts.

State mutations change what is fed back to an exported graph, once, in the middle of a stream: each state zeroed, each
pair of equal shape swapped, positions moved by a token. Structural ones build a graph that is wrong as a whole: no
sliding window, no replicated first sample, a bias kept in the overlap. Whatever the mutation, at least one code must
then differ without a tie to excuse it, or the decoder's audio must fall below the bar.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import DECODER_SNR, Step, match_codes, onnx_step, session, show, snr, stream, torch_step, zeros
from helpers import States as StateArrays

from mimi_export.contract import network, spec
from mimi_export.contract.spec import GRAPH_KINDS, GraphSpec, Shape, graph_spec
from mimi_export.media.signals import speech_like
from mimi_export.model import upstream
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import streaming_graph

Change = Callable[[StateArrays], StateArrays]
CODEBOOKS = 16  # the more levels, the finer the measure
FRAMES_PER_CALL = {"window": None, "ring": 2}


@dataclass(frozen=True)
class Case:
    """One graph, the clip it is fed with, and upstream's batch result."""

    checkpoint: Checkpoint
    graph: GraphSpec
    data: np.ndarray  # audio or codes of a whole clip
    wanted: np.ndarray
    latents: np.ndarray

    @property
    def unit(self) -> int:
        """Samples of the input's last axis per frame."""
        return self.checkpoint.geometry.frame_size if self.graph.kind == "encoder" else 1

    @property
    def frames(self) -> int:
        return self.latents.shape[2]

    def judge(self, start: int, output: np.ndarray) -> tuple[bool, str]:
        """Whether an output that begins at frame `start` passes parity, and its figure."""
        if self.graph.kind == "decoder":
            unit = self.checkpoint.geometry.frame_size
            level = snr(self.wanted[:, :, start * unit : start * unit + output.shape[2]], output)
            return level >= DECODER_SNR, f"{level:.1f} dB"
        here = slice(start, start + output.shape[2])
        match = match_codes(self.checkpoint.model, self.latents[:, :, here], self.wanted[:, :, here], output)
        return match.wrong == 0, f"{match.agreement:.1f} % of codes"


def make_case(checkpoint: Checkpoint, kind: str, layout: str, seconds: float) -> Case:
    geometry = checkpoint.geometry
    audio = speech_like(seconds, seed=41)
    audio = torch.from_numpy(audio[: len(audio) // geometry.frame_size * geometry.frame_size])[None, None]
    graph = graph_spec(geometry, kind, Shape(CODEBOOKS, layout, FRAMES_PER_CALL[layout]))
    latents = upstream.encode_latents(checkpoint.model, audio)
    codes = upstream.encode(checkpoint.model, audio, graph.shape.num_codebooks)
    if kind == "encoder":
        return Case(checkpoint, graph, audio.numpy(), codes.numpy(), latents.numpy())
    decoded = upstream.decode(checkpoint.model, codes)
    return Case(checkpoint, graph, codes.numpy(), decoded.numpy(), latents.numpy())


def zeroed(*names: str) -> Change:
    return lambda states: {name: np.zeros_like(value) if name in names else value for name, value in states.items()}


def swapped(a: str, b: str) -> Change:
    return lambda states: {**states, a: states[b], b: states[a]}


def rolled(states: StateArrays) -> StateArrays:
    """Every key and value one token older than it was."""
    return {
        name: np.roll(value, 1, axis=2) if name.startswith(("key_", "value_")) else value
        for name, value in states.items()
    }


def forgotten(states: StateArrays) -> StateArrays:
    """The newest token dropped."""
    return {name: value[:, :, :-1] if name.startswith(("key_", "value_")) else value for name, value in states.items()}


def moved(by: int) -> Change:
    return lambda states: {**states, "position": states["position"] + by}


def state_mutations(graph: GraphSpec) -> dict[str, Change]:
    """Every change of fed-back states that must be seen, computed from the graph's own list of states."""
    changes: dict[str, Change] = {f"{state.name} zeroed": zeroed(state.name) for state in graph.states}
    for a, b in itertools.combinations(graph.states, 2):
        if (a.past_shape, a.dtype) == (b.past_shape, b.dtype):
            changes[f"{a.name} and {b.name} swapped"] = swapped(a.name, b.name)
    if graph.shape.layout == "ring":
        changes |= {"position one too far": moved(1), "position one too near": moved(-1)}
    else:
        changes |= {"keys and values one token older": rolled, "newest token forgotten": forgotten}
    return changes


def run_state_mutations(
    case: Case, step: Step, places: tuple[int, ...], frames: int
) -> Iterator[tuple[str, bool, str]]:
    """Name, whether parity passes, and the figure: first unchanged, then for each change of the states.

    The stream up to a place (a frame) is run once; then each change there is followed for `frames` frames. Codes are a
    coarse measure: two samples of an early layer, zeroed once, can leave all codes of one frame as they are. So what
    one place does not show is tried at the next; what none shows is not seen.
    """
    calls = [case.graph.shape.frames_per_call or 1]
    pending: dict[str, Change] = {"unchanged": dict, **state_mutations(case.graph)}
    for at in places:
        before, states = stream(step, zeros(case.graph, 1), case.data[:, :, : at * case.unit], case.unit, calls)
        passes, figure = case.judge(0, before)
        assert passes, f"wrong before any change: {figure}"
        data = case.data[:, :, at * case.unit : (at + frames) * case.unit]
        for name, change in list(pending.items()):
            output, _ = stream(step, change(states), data, case.unit, calls)
            passes, figure = case.judge(at, output)
            if name == "unchanged" or not passes or at == places[-1]:
                del pending[name]
                yield name, passes, figure


def transposed_biases(case: Case) -> dict[str, np.ndarray]:
    """State name and bias `[C, 1]` of each transposed convolution that has one."""
    weights = upstream.parts(case.checkpoint.model).decoder_seanet
    return {
        spec.conv_state_name(layer): weights.get_submodule(layer.path).bias.detach().numpy()[:, None]
        for layer in network.conv_layers(case.checkpoint.geometry, case.graph.kind)
        if layer.transposed and layer.bias
    }


def run_structural_mutations(
    case: Case, monkeypatch: pytest.MonkeyPatch, pattern: list[int]
) -> Iterator[tuple[str, bool, str]]:
    """As `run_state_mutations`, for graphs that are wrong as a whole, in PyTorch and from the first frame on."""
    checkpoint, graph = case.checkpoint, case.graph

    def run(geometry=checkpoint.geometry, first=None, mutate=None):
        wrong = dataclasses.replace(checkpoint, geometry=geometry)
        wrong_spec = graph_spec(geometry, graph.kind, graph.shape)
        module = streaming_graph(wrong, wrong_spec)
        states = zeros(module.graph, 1)
        states = states if first is None else first(states)
        output, _ = stream(torch_step(module), states, case.data, case.unit, pattern, mutate)
        return case.judge(0, output)

    yield "unchanged", *run()
    window = checkpoint.geometry.sliding_window
    endless = 2 * case.frames * checkpoint.geometry.tokens_per_frame
    for name, size in (("no sliding window", endless), ("window one longer", window + 1), ("one shorter", window - 1)):
        yield name, *run(dataclasses.replace(checkpoint.geometry, sliding_window=size))
    if graph.kind == "encoder":
        layer = network.downsample_layer(checkpoint.geometry)
        with monkeypatch.context() as patch:
            patch.setattr(network, "downsample_layer", lambda _: dataclasses.replace(layer, pad_mode="constant"))
            yield "no replicate on the first call", *run()
        return
    biases = transposed_biases(case)

    def add(states: StateArrays, sign: float) -> StateArrays:
        return {name: value + sign * biases[name] if name in biases else value for name, value in states.items()}

    yield "bias kept in the overlap", *run(mutate=lambda _, states: add(states, 1.0))
    if graph.shape.layout == "window":  # a ring ignores what a stream begins with
        yield "bias kept and subtracted, so lost in the first call", *run(first=lambda states: add(states, -1.0))


def assert_seen(rows: list[tuple[str, bool, str]]) -> None:
    (name, passes, figure), *mutations = rows
    assert name == "unchanged"
    assert passes, f"wrong without any change: {figure}"
    unseen = [f"{name}: {figure}" for name, passes, figure in mutations if passes]
    assert not unseen, f"parity does not see {len(unseen)} of {len(mutations)}: {unseen}"


def table(title: str, rows: list[tuple[str, bool, str]]) -> str:
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{width}}  {figure:>18}  {'passes' if passes else 'fails'}" for name, passes, figure in rows]
    return "\n".join(["", title, *lines, ""])


@pytest.mark.parametrize("layout", ["window", "ring"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_every_broken_state_is_seen(tiny_variant, tiny_checkpoint, kind, layout):
    case = make_case(tiny_checkpoint, kind, layout, seconds=4)
    path = tiny_variant(CODEBOOKS, layout, FRAMES_PER_CALL[layout]) / f"{kind}_model.onnx"
    rows = list(run_state_mutations(case, onnx_step(session(path)), (16, 20, 24), frames=10))
    show(table(f"tiny, {kind}, {layout}", rows))
    assert len(rows) > len(case.graph.states)
    assert_seen(rows)


@pytest.mark.parametrize("layout", ["window", "ring"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_every_broken_structure_is_seen(tiny_checkpoint, kind, layout, monkeypatch):
    case = make_case(tiny_checkpoint, kind, layout, seconds=4)
    rows = list(run_structural_mutations(case, monkeypatch, [2]))
    show(table(f"tiny, {kind}, {layout}", rows))
    assert_seen(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_full_size_broken_states_are_seen(full_variant, full_checkpoint, kind, capsys):
    case = make_case(full_checkpoint, kind, "window", seconds=2)
    rows = list(
        run_state_mutations(case, onnx_step(session(full_variant(16) / f"{kind}_model.onnx")), (14, 17, 20), frames=4)
    )
    show(table(f"full size, {kind}, window", rows), capsys)
    assert_seen(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_full_size_broken_structures_are_seen(full_checkpoint, kind, monkeypatch, capsys):
    """12 s, so that the window of 10 s slides."""
    case = make_case(full_checkpoint, kind, "window", seconds=12)
    rows = list(run_structural_mutations(case, monkeypatch, [10]))
    show(table(f"full size, {kind}, window", rows), capsys)
    assert_seen(rows)
