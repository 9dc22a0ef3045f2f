"""One graph of ours, or of the baseline, as a contender of the benchmark in a process of its own.

    python -m mimi_export.bench.graphs DIR encoder|decoder [--threads 1] [--provider cpu] [--audio FILE.npy]

speaks the protocol of `worker` in two ways: `bare` is the session with everything bound once, `push` the runtime's
stream. States have the shapes of a stream of the age that is asked for, reached at once instead of by running:

    ring, full window   keys and values as the runtime keeps them; calls go from one set of states to the other and back
    growing             a window that is not full yet, and the public design for ever: the age is held, so every bare
                        call has the same past and writes its present aside. A real client would have to allocate, too;
                        that is not charged
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimi_export.bench.worker import Call, serve
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.spec import BATCH, LATENTS, PAST, PRESENT, GraphKind, GraphSpec, position_digits
from mimi_export.media.signals import speech_like
from mimi_export.runtime import load
from mimi_export.runtime.codec import Codec, Encoder
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import BoundCall, moving, ort_value

Array = NDArray[Any]
PUBLIC = "public-design"  # also what the conversion of its manifest says
_STATE_LEVEL = 0.1
_CLIP_SECONDS = 4.0


class GraphSubject:
    """One graph of a variant; an encoder gets `audio` `[n]`, at least one call, or generated speech."""

    version = ""
    ways: tuple[str, ...] = ("bare", "push")

    def __init__(self, codec: Codec, kind: GraphKind, audio: Array | None = None) -> None:
        self._half = codec.encoder if kind == "encoder" else codec.decoder
        self._graph, self._geometry, self._audio = self._half.graph, codec.geometry, audio
        self._bounded = not any(record.get("pass") == PUBLIC for record in codec.artifact.manifest.conversion)
        self.name = codec.artifact.manifest.name
        provider = self._graph.session.get_providers()[0]
        self.note = "" if provider == "CPUExecutionProvider" else f"on {provider}"
        self.frames_per_call = self._graph.spec.shape.frames_per_call or 1

    def calls(self, ways: Sequence[str], age_seconds: float, batch: int) -> dict[str, Call]:
        """See `worker.Subject`."""
        spec = self._graph.spec
        data = call_data(spec, self._geometry, batch, self._audio)
        past, present = states_at(spec, self._geometry, batch, age_seconds, self._bounded)
        made: dict[str, Call] = {}
        if "bare" in ways:
            made["bare"] = bare_call(self._graph, data, past, present)
        if "push" in ways:
            half, codes = self._half, spec.data_output.name != LATENTS
            stream: Any = half.stream(batch) if codes or not isinstance(half, Encoder) else half.latents(batch)
            stream.restore(dataclasses.replace(stream.snapshot(), states=past))
            pushed: Any = data[:, 0] if spec.kind == "encoder" else data
            made["push"] = lambda: stream.push(pushed)
        return made


def states_at(
    spec: GraphSpec, geometry: Geometry, batch: int, age_seconds: float, bounded: bool = True
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Past and present states of one call on a stream of an age, by name.

    The past holds random numbers of a quiet signal's level, and the true position; the present zeros. Unless `bounded`,
    keys and values do not stop growing at the window (the public design).
    """
    rng = np.random.default_rng(0)
    tokens = round(age_seconds * geometry.frame_rate) * geometry.tokens_per_frame
    after = tokens + (spec.shape.frames_per_call or 1) * geometry.tokens_per_frame
    most = spec.window_length if bounded else after
    sizes = {BATCH: batch, PAST: min(tokens, most), PRESENT: min(after, most)}
    if not spec.shape.growing and tokens:
        sizes[PAST] = spec.window_length
    past: dict[str, Array] = {}
    present: dict[str, Array] = {}
    for state in spec.states:
        shapes = (state.past_shape, state.present_shape)
        before, behind = ([sizes[dim] if isinstance(dim, str) else dim for dim in shape] for shape in shapes)
        if state.kind == "position":
            past[state.name] = np.full(before, tokens, np.int64)
        else:
            past[state.name] = rng.standard_normal(before, np.float32) * np.float32(_STATE_LEVEL)
        present[state.name] = np.zeros(behind, state.dtype)
    if spec.shape.layout == "window" and not spec.shape.growing:
        past["value_0"][:, :, -1:, :2] = position_digits(tokens)
    return past, present


def call_data(spec: GraphSpec, geometry: Geometry, batch: int, audio: Array | None = None) -> Array:
    """Data of one call: the loudest stretch of `audio` `[n]` or of generated speech, every row another, as
    `[batch, 1, samples]`; or uniformly random codes `[batch, K, frames]` or latents `[batch, frames, hidden]`.
    """
    frames = spec.shape.frames_per_call or 1
    if spec.kind == "decoder" and spec.shape.start == LATENTS:
        return np.random.default_rng(0).standard_normal((batch, frames, geometry.hidden_size), np.float32)
    if spec.kind == "decoder":
        return np.random.default_rng(0).integers(0, geometry.codebook_size, (batch, spec.shape.num_codebooks, frames))
    samples = frames * geometry.frame_size
    clip = speech_like(_CLIP_SECONDS, 0, geometry.sampling_rate) if audio is None else audio
    loudest = max(0, int(np.argmax(np.abs(clip))) - samples // 2)
    starts = (loudest + np.arange(batch) * 480) % (len(clip) - samples + 1)
    return np.stack([clip[start : start + samples] for start in starts])[:, None].astype(np.float32)


def bare_call(graph: GraphSession, data: Array, past: dict[str, Array], present: dict[str, Array]) -> Call:
    """A call with everything bound; it returns copies of the data outputs."""
    first = {name: ort_value(array, graph.device) for name, array in past.items()}
    second = first | {state.name: ort_value(present[state.name], graph.device) for state in moving(graph.spec)}
    turns = [BoundCall(graph, first, second, data.shape)]
    if all(array.shape == present[name].shape for name, array in past.items()):
        turns.append(BoundCall(graph, second, first, data.shape))
    turn = itertools.cycle(turns)
    return lambda: next(turn).run(data)


def main() -> int:
    """Load a graph and serve."""
    parser = argparse.ArgumentParser(prog="mimi_export.bench.graphs", description="Run one graph.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("kind", choices=("encoder", "decoder"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--audio", type=Path)
    options = parser.parse_args()
    audio = None if options.audio is None else np.load(options.audio, allow_pickle=False)
    settings = (options.directory, options.threads, (options.provider,))
    return serve(lambda: GraphSubject(load(*settings), options.kind, audio))


if __name__ == "__main__":
    sys.exit(main())
