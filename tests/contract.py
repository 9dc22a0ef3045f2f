"""The contract of a stream, for everything that has one: torch steps, graphs, the runtime, clients in any language.

Whatever takes one call's data and the stream so far, and gives an output and the stream after it, must give what
untouched upstream code gives for the whole clip in one batch call, however the clip is split into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from helpers import DECODER_SNR, States, calls, match_codes, snr, zeros

from mimi_export.contract.spec import GraphKind, GraphSpec
from mimi_export.model import upstream

Stream = TypeVar("Stream")  # states by name, or any object that keeps them
Step = Callable[[np.ndarray, Stream], tuple[np.ndarray, Stream]]


@dataclass(frozen=True)
class Reference:
    """Clips, one a row, and what upstream makes of them in one batch call. The codes of K codebooks are the first K."""

    model: Any
    audio: np.ndarray  # [B, 1, samples], whole frames
    latents: np.ndarray  # [B, hidden, frames]
    codes: np.ndarray  # [B, K, frames]
    _decoded: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, audio: np.ndarray, num_codebooks: int) -> Reference:
        """Of audio `[samples]`, `[B, samples]` or `[B, 1, samples]`, without what is left of a last frame."""
        size = upstream.geometry_of(model).frame_size
        clips = torch.from_numpy(audio[..., : audio.shape[-1] // size * size].copy())
        clips = clips.reshape(-1 if audio.ndim > 1 else 1, 1, clips.shape[-1])
        latents = upstream.encode_latents(model, clips)
        codes = upstream.quantize_latents(model, latents, num_codebooks)
        return cls(model, clips.numpy(), latents.numpy(), codes.numpy())

    def row(self, index: int) -> Reference:
        """One clip of them."""
        one = slice(index, index + 1)
        return Reference(self.model, self.audio[one], self.latents[one], self.codes[one])

    @property
    def frames(self) -> int:
        return self.codes.shape[2]

    def decoded(self, num_codebooks: int) -> np.ndarray:
        """What the first codebooks sound like, `[B, 1, samples]`."""
        if num_codebooks not in self._decoded:
            codes = torch.from_numpy(self.codes[:, :num_codebooks].copy())
            self._decoded[num_codebooks] = upstream.decode(self.model, codes).numpy()
        return self._decoded[num_codebooks]

    def data(self, kind: GraphKind, num_codebooks: int) -> np.ndarray:
        """What a graph is given: the audio or its codes."""
        return self.audio if kind == "encoder" else np.ascontiguousarray(self.codes[:, :num_codebooks])

    def judge(self, kind: GraphKind, num_codebooks: int, output: np.ndarray, start: int = 0) -> str:
        """Fail unless an output from frame `start` on is right to within float32 rounding; else say what was seen."""
        if kind == "decoder":
            wanted = self.decoded(num_codebooks)
            first = start * (wanted.shape[2] // self.frames)
            level = snr(wanted[:, :, first : first + output.shape[2]], output)
            assert level >= DECODER_SNR
            return f"decoder {level:.1f} dB"
        here = slice(start, start + output.shape[2])
        wanted = self.codes[:, :num_codebooks, here]
        match = match_codes(self.model, self.latents[:, :, here], wanted, output)
        assert match.wrong == 0, match
        assert match.ties <= max(3, 0.001 * match.total), match  # the odd tie, and what follows it in its frame
        return str(match)


def verify_stream(
    step: Step[Stream],
    graph: GraphSpec,
    reference: Reference,
    patterns: Sequence[Sequence[int]],
    begin: Callable[[], Stream] | None = None,
    frames: int | None = None,
    unit: int | None = None,
) -> str:
    """Fail unless `step` keeps the contract; else say what was seen.

    - Every split into calls gives what upstream gives in one batch call.
    - Each call gives outputs and states of the types and shapes of `graph`.
    - Where position 0 begins a stream, it does so whatever finite values the other states hold.
    - A graph refuses audio that is no whole number of frames.

    Args:
        step: one call.
        graph: its inputs and outputs.
        reference: clips, as many as a call has rows.
        patterns: frames a call; a pattern repeats until the clip ends.
        begin: a new stream; the zeros of the contract by default, in which case streams are states by name.
        frames: how much of the clips, for the whole.
        unit: samples that `patterns` count; a frame's by default. Smaller for a runtime that takes pieces of any size.
    """
    kind, count = graph.kind, graph.shape.num_codebooks
    in_frame, out_frame = (graph.frame_size, 1) if kind == "encoder" else (1, graph.frame_size)
    unit = unit or in_frame
    data = reference.data(kind, count)[..., : None if frames is None else frames * in_frame]
    begins: list[Callable[[], Any]] = [begin or partial(zeros, graph, len(data))]
    if begin is None and graph.shape.layout == "ring":
        begins.append(lambda: garbage(zeros(graph, len(data))))
    seen = ""
    for new_stream in begins:
        for pattern in patterns:
            stream, outputs = new_stream(), []
            for start, stop in calls(data.shape[2] // unit, pattern):
                call = np.ascontiguousarray(data[..., start * unit : stop * unit])
                output, stream = step(call, stream)
                assert str(output.dtype) == graph.data_output.dtype
                if begin is None:
                    assert output.shape[2] == call.shape[2] // in_frame * out_frame
                    _check_states(graph, stream)
                outputs.append(output)
            seen = reference.judge(kind, count, np.concatenate(outputs, axis=2))
    if begin is None and kind == "encoder":
        for length in (1, in_frame - 1, in_frame + 1):
            with pytest.raises(Exception, match=r"."):
                step(np.ascontiguousarray(data[..., :length]), zeros(graph, len(data)))
    return seen


def garbage(states: States, loud: float = 1e6) -> States:
    """Loud noise in all states but `position`."""
    noise = np.random.default_rng(0)
    return {
        name: value if name == "position" else (loud * noise.standard_normal(value.shape)).astype(np.float32)
        for name, value in states.items()
    }


def _check_states(graph: GraphSpec, states: States) -> None:
    assert list(states) == [state.name for state in graph.states]
    for state in graph.states:
        assert str(states[state.name].dtype) == state.dtype, state.name
        for wanted, size in zip(state.present_shape, states[state.name].shape, strict=True):
            assert isinstance(wanted, str) or wanted == size, state.name
