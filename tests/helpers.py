"""What several tests measure with: patterns of calls, a driver for any graph, signal-to-noise ratio, ties.

Nothing here knows a shortcut into the product: a graph is a function from data and states, by name, to the same.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from mimi_export.media.codes import CodesMetadata, CodesWriter
from mimi_export.model import upstream
from mimi_export.parity.metrics import difference_of

DECODER_SNR = 110.0  # dB; float32 rounding through some 60 layers leaves 115 to 120, the smallest defect under 90

# An execution provider beside the processor's that leaves all to it; the processor's where onnxruntime lacks that one.
OTHER_PROVIDER = next((name for name in ort.get_available_providers() if "Azure" in name), "CPUExecutionProvider")

# Frames per call; a pattern repeats until the signal ends, and its last call is cut to what is left.
PATTERNS: dict[str, list[int]] = {
    "1": [1],
    "2": [2],
    "3": [3],
    "4": [4],
    "7": [7],
    "mixture": [1, 4, 2, 7, 3, 1, 1, 13],
}

States = dict[str, np.ndarray]
Step = Callable[[np.ndarray, States], tuple[np.ndarray, States]]
Mutation = Callable[[int, States], States]


def calls(total: int, pattern: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last-plus-one frame of each call that covers `total` frames in a repeated pattern."""
    start = 0
    for length in itertools.cycle(pattern):
        if start >= total:
            return
        yield start, min(start + length, total)
        start += length


def snr(reference: Any, got: Any) -> float:
    """Signal-to-noise ratio in dB of arrays or tensors."""
    return difference_of(np.asarray(reference), np.asarray(got)).snr_db


def write_codes(path: Path, codes: np.ndarray, metadata: CodesMetadata | None = None, force: bool = False) -> None:
    """A file of codes, written at once."""
    with CodesWriter(path, metadata, force) as writer:
        writer.append(codes)


def torch_step(module: torch.nn.Module) -> Step:
    """One call of a streaming graph in PyTorch."""

    @torch.no_grad()
    def step(data: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        past = [torch.from_numpy(states[state.name]) for state in module.graph.states]
        result, *present = module(torch.from_numpy(data), *past)
        names = (state.name for state in module.graph.states)
        return result.numpy(), {name: tensor.numpy() for name, tensor in zip(names, present, strict=True)}

    return step


def onnx_step(session: ort.InferenceSession) -> Step:
    """One call of an exported graph, its states by name, without the product's runtime."""
    data_name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]

    def step(data: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        feeds = {data_name: data, **{f"past_{name}": value for name, value in states.items()}}
        result, *present = session.run(outputs, feeds)
        return result, {name.removeprefix("present_"): value for name, value in zip(outputs[1:], present, strict=True)}

    return step


def session(path: Any) -> ort.InferenceSession:
    """A plain session of one thread, which leaves its errors to exceptions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def zeros(spec: Any, batch: int) -> States:
    """The states that begin a stream."""
    dtypes = {"float32": np.float32, "int64": np.int64}
    return {state.name: np.zeros(state.initial_shape(batch), dtypes[state.dtype]) for state in spec.states}


def stream(
    step: Step, states: States, data: np.ndarray, unit: int, pattern: Sequence[int], mutate: Mutation | None = None
) -> tuple[np.ndarray, States]:
    """Run `data` `[B, C, frames·unit]` in calls of `pattern` frames; the joined output and the last states.

    `mutate(frame, states)` may change the states that a call starting at `frame` is given, from the second call on.
    """
    outputs = []
    for start, stop in calls(data.shape[-1] // unit, pattern):
        if mutate is not None and start > 0:
            states = mutate(start, states)
        output, states = step(np.ascontiguousarray(data[..., start * unit : stop * unit]), states)
        outputs.append(output)
    return np.concatenate(outputs, axis=-1), states


def show(text: str, capsys: Any = None) -> None:
    """Write a line of results: past pytest's capture if `capsys` is given, else for `-s` and failure reports."""
    if capsys is None:
        sys.stdout.write(text + "\n")
        return
    with capsys.disabled():
        sys.stdout.write(text + "\n")


@dataclass(frozen=True)
class Match:
    """How codes compare with a reference: all of them, those equal, and how the others are explained."""

    total: int
    equal: int
    ties: int  # differ, but each is as near as any entry to within what rounding explains

    @property
    def wrong(self) -> int:
        """Codes that differ without an excuse."""
        return self.total - self.equal - self.ties

    @property
    def agreement(self) -> float:
        """Percent of codes that are equal."""
        return 100 * self.equal / self.total

    def __str__(self) -> str:
        return f"{self.agreement:.3f} % of {self.total} codes equal, {self.ties} ties, {self.wrong} wrong"


def match_codes(model: Any, latents: np.ndarray, reference: np.ndarray, codes: np.ndarray) -> Match:
    """Compare codes `[B, K, T]` with the reference's.

    A frame that differs is walked again with the codes it got: after a tie the levels below see another residual, so
    each level is judged by what its own codes left. A code is right there if no entry is nearer to that residual than
    rounding explains: latents that differ by `DECODER_SNR`, and distances computed in float32.

    Args:
        model: upstream's.
        latents: what upstream quantised, `[B, hidden, T]`.
        reference: upstream's codes.
        codes: the ones to judge.
    """
    assert codes.shape == reference.shape, f"{codes.shape} is not the shape of the reference, {reference.shape}"
    differs = codes != reference
    ties = 0
    for batch, frame in np.argwhere(differs.any(axis=1)):
        explained = _near(model, latents[batch, :, frame].astype(np.float64), codes[batch, :, frame])
        ties += int((differs[batch, :, frame] & explained).sum())
    return Match(codes.size, int((~differs).sum()), ties)


def _near(model: Any, latent: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Whether each code `[K]` of one frame, and all before it, are nearest entries to within rounding."""
    rounding = 10 ** (-DECODER_SNR / 20)
    quantizer = upstream.parts(model).quantizer
    semantic = quantizer.num_semantic_quantizers
    near = []
    for half, part in (("semantic", codes[:semantic]), ("acoustic", codes[semantic:])):
        residual_quantizer = getattr(quantizer, f"{half}_residual_vector_quantizer")
        projection = residual_quantizer.input_proj
        residual = latent if projection is None else projection.weight[:, :, 0].double().numpy() @ latent
        scale, right = np.linalg.norm(residual), True
        for code, layer in zip(part, residual_quantizer.layers, strict=False):
            entries = layer.codebook.embed.double().numpy()
            distances = np.square(residual - entries).sum(axis=1)
            best = int(distances.argmin())
            moved = 2 * rounding * scale * np.linalg.norm(entries[best] - entries[code])
            computed = 4 * np.finfo(np.float32).eps * (np.square(residual).sum() + np.square(entries[code]).sum())
            right = right and bool(distances[code] - distances[best] <= moved + computed)
            near.append(right)
            residual = residual - entries[code]
    return np.array(near)
