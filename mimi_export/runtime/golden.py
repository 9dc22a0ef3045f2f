"""The golden clip: what a variant gave when it was made, kept beside it, so that it can be checked anywhere.

`golden.safetensors` in a variant directory holds

    audio     int16 [N]         a few seconds of generated sound, full scale 32768
    codes     int32 [K, T]      what the encoder made of it, frame by frame
    decoded   float32 [T·F]     what the decoder made of these codes, frame by frame

written with onnxruntime at export time. Replaying needs numpy and onnxruntime only. Another processor may round
differently, and 8-bit products of some old processors saturate; the tolerances leave room for that and not for a
wrong result. The files' hashes say that the graphs are the same; this says that they compute the same here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mimi_export.contract.decibels import decibels
from mimi_export.contract.directory import Artifact
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.spec import PAST, PRESENT, GraphKind, GraphSpec
from mimi_export.errors import ArtifactError, GraphError
from mimi_export.media.signals import speech_like
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import StreamState

GOLDEN_NAME = "golden.safetensors"
SECONDS = 3.0
SEED = 7
# By precision: fraction of codes that must be equal, and SNR in dB of the decoded audio. Graphs that compute in float32
# leave 110 dB between processors; the codes' margin is for near ties, which take later levels with them. 8-bit
# products differ by operator and processor.
TOLERANCES = {"fp32": (0.97, 80.0), "fp16": (0.97, 80.0), "int8": (0.5, 20.0)}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GoldenResult:
    """How a replay compares: fraction of equal codes and SNR in dB, each with the least that is accepted."""

    frames: int
    codes_equal: float
    codes_least: float
    snr_db: float
    snr_least: float

    @property
    def passed(self) -> bool:
        """Whether both are good enough."""
        return self.codes_equal >= self.codes_least and self.snr_db >= self.snr_least


def write_golden(directory: Path, manifest: Manifest) -> None:
    """Run the graphs in `directory` over the golden clip and keep the result there; call it before the manifest.

    Raises:
        GraphError: a graph does not load or fails.
    """
    geometry = manifest.geometry
    encoder, decoder = manifest.spec("encoder"), manifest.spec("decoder")
    unit = geometry.frame_size * (manifest.shape.frames_per_call or 1)
    seconds = max(1, round(SECONDS * geometry.sampling_rate / unit)) * unit / geometry.sampling_rate
    sound = speech_like(seconds, SEED, geometry.sampling_rate)
    audio = np.rint(sound * 32767).astype(np.int16)
    codes = _run(GraphSession(directory / encoder.file_name, encoder), _samples(audio), geometry.frame_size)
    decoded = _run(GraphSession(directory / decoder.file_name, decoder), codes, 1)
    data = save({"audio": audio, "codes": codes[0].astype(np.int32), "decoded": decoded[0, 0]})
    (directory / GOLDEN_NAME).write_bytes(data)


def replay_golden(artifact: Artifact) -> GoldenResult:
    """Run a variant over its golden clip.

    The shape of every state is compared with the contract after every call.

    Raises:
        ArtifactError: there is no golden clip, it does not fit the variant, or this precision is not known.
        GraphError: a graph does not load, fails, or hands on a state of another shape than it should.
    """
    manifest, geometry = artifact.manifest, artifact.geometry
    golden = _read(artifact)
    precision = manifest.precision.partition("-")[0]
    if precision not in TOLERANCES:
        raise ArtifactError(f"{artifact.path} has precision {manifest.precision!r}, known are {', '.join(TOLERANCES)}")
    audio, expected, decoded = golden["audio"], golden["codes"].astype(np.int64), golden["decoded"]
    codes = _run(_session(artifact, "encoder"), _samples(audio), geometry.frame_size)
    found = _run(_session(artifact, "decoder"), expected[None], 1)
    codes_least, snr_least = TOLERANCES[precision]
    equal = float((codes[0] == expected).mean())
    return GoldenResult(expected.shape[1], equal, codes_least, _snr_db(decoded, found[0, 0]), snr_least)


def _session(artifact: Artifact, kind: GraphKind) -> GraphSession:
    return GraphSession(artifact.graph_path(kind), artifact.spec(kind))


def _read(artifact: Artifact) -> dict[str, Array]:
    path = artifact.path / GOLDEN_NAME
    if not path.is_file() or GOLDEN_NAME not in artifact.manifest.files:
        raise ArtifactError(f"{artifact.path} has no golden clip ({GOLDEN_NAME}); export it again with this program")
    try:
        golden = load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged: {str(error).splitlines()[0]}; download or export it again") from error
    shapes = {name: array.shape for name, array in golden.items()}
    frames = len(golden["audio"]) // artifact.geometry.frame_size if "audio" in golden else 0
    wanted = {
        "audio": (frames * artifact.geometry.frame_size,),
        "codes": (artifact.manifest.shape.num_codebooks, frames),
        "decoded": (frames * artifact.geometry.frame_size,),
    }
    if shapes != wanted or frames == 0:
        text = json.dumps({name: list(shape) for name, shape in sorted(shapes.items())})
        raise ArtifactError(f"{path} holds {text}, which does not fit the variant; export it again")
    return golden


def _samples(audio: Array) -> Array:
    samples: Array = audio.astype(np.float32)[None, None] / np.float32(32768)
    return samples


def _run(graph: GraphSession, data: Array, unit: int) -> Array:
    """All of `data` `[1, C, n]` through a new stream of `graph`, one frame a call (or what the graph is fixed to).

    A graph of a fixed batch gets the same in every row, and its first row counts.
    """
    rows = graph.spec.shape.rows or 1
    state = StreamState(graph, rows)
    calls = _calls(graph.spec, np.repeat(data, rows, axis=0), unit)
    return np.concatenate([_checked(state, graph.spec, call)[:1] for call in calls], axis=2)


def _calls(spec: GraphSpec, data: Array, unit: int) -> Iterator[Array]:
    size = unit * (spec.shape.frames_per_call or 1)
    for start in range(0, data.shape[2], size):
        yield np.ascontiguousarray(data[..., start : start + size])


def _checked(state: StreamState, spec: GraphSpec, call: Array) -> Array:
    before = {name: array.shape for name, array in state.snapshot().items()}
    output = state.step(call)
    for name, array in state.snapshot().items():
        wanted = _present_shape(spec, name, before[name])
        fits = len(wanted) == array.ndim and all(
            dim == real if isinstance(dim, int) else real >= before[name][axis]
            for axis, (dim, real) in enumerate(zip(wanted, array.shape, strict=True))
        )
        if not fits:
            raise GraphError(f"{spec.file_name}: present_{name} has shape {list(array.shape)}, expected {wanted}")
    return output


def _present_shape(spec: GraphSpec, name: str, before: tuple[int, ...]) -> list[int | str]:
    """The contract's shape of a state after a call of one stream; a free length may only grow."""
    shape = spec.state(name).present_shape
    return [dim if isinstance(dim, int) or dim in (PAST, PRESENT) else before[axis] for axis, dim in enumerate(shape)]


def _snr_db(reference: Array, result: Array) -> float:
    wanted = reference.astype(np.float64)
    return decibels(float(np.square(wanted).sum()), float(np.square(result - wanted).sum()))
