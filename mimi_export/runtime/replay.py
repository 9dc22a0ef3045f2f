"""A golden clip through a graph: what `verify` does with all of it, and the first use on a machine with its beginning.

Reads the clip's file without the safetensors package: a few plain tensors, after a header of JSON that says where.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mimi_export.contract.decibels import decibels
from mimi_export.contract.directory import Artifact
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.records import shown
from mimi_export.contract.spec import PAST, PRESENT, GraphSpec
from mimi_export.errors import ArtifactError, GraphError
from mimi_export.runtime.processor import instruction_set, processor_name
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import StreamState

GOLDEN_NAME = "golden.safetensors"
SATURATING = ("sse4.1", "avx2", "avx512")  # instruction sets that add pairs of 8-bit products in 16 bits
_DTYPES = {"I16": "<i2", "I32": "<i4", "F32": "<f4"}

Array = npt.NDArray[Any]


def read_tensors(path: Path) -> tuple[dict[str, Array], Mapping[str, str]]:
    """The tensors of a safetensors file, and its metadata; `ArtifactError` for one that is damaged."""
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        metadata = dict(header.pop("__metadata__", {}))
        tensors = {}
        for name, entry in header.items():
            dtype, (first, last) = np.dtype(_DTYPES[entry["dtype"]]), entry["data_offsets"]
            if first < 0 or last - first != math.prod(entry["shape"]) * dtype.itemsize:
                raise ValueError(f"{name} does not fill its bytes")
            flat = np.frombuffer(content[start + first : start + last], dtype)
            tensors[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ArtifactError(f"{path} is damaged: {shown(str(error))}; download or export it again") from error
    return tensors, metadata


def read_golden(artifact: Artifact) -> dict[str, Array]:
    """The clip's tensors; `ArtifactError` where it is missing, damaged or does not fit the variant."""
    path = artifact.path / GOLDEN_NAME
    if not path.is_file() or GOLDEN_NAME not in artifact.manifest.files:
        raise ArtifactError(f"{artifact.path} has no golden clip ({GOLDEN_NAME}); export it again with this program")
    golden, _ = read_tensors(path)
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


def cause(manifest: Manifest) -> str:
    """What is to blame where files have the right hashes and give something else."""
    has = instruction_set()
    place = f"onnxruntime {ort.__version__} on {processor_name()}{f' ({has})' if has else ''}"
    if manifest.precision.startswith("int8") and has in SATURATING:
        return (
            f"the files are as published, so the cause is {place}, which has no VNNI and may saturate sums of 8-bit "
            "products; use the fp32 or fp16 variant here, or convert it again with this program"
        )
    return f"either the variant is bad or {place} computes it wrongly: try another version, or export it again"


def samples_of(audio: Array) -> Array:
    """The clip's audio as an encoder takes it."""
    samples: Array = audio.astype(np.float32)[None, None] / np.float32(32768)
    return samples


def run_calls(graph: GraphSession, data: Array, unit: int) -> Array:
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


def snr_db(reference: Array, result: Array) -> float:
    """How near a result is to what it should be."""
    wanted = reference.astype(np.float64)
    return decibels(float(np.square(wanted).sum()), float(np.square(result - wanted).sum()))
