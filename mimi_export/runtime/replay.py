"""A golden clip through a graph: what `verify` does with all of it, and the first use on a machine with its beginning.

Reads the clip's file without the safetensors package: a few plain tensors, after a header of JSON that says where.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from mimi_export.contract.decibels import decibels
from mimi_export.contract.directory import Artifact
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.records import shown
from mimi_export.contract.spec import PRESENT, GraphSpec
from mimi_export.errors import ArtifactError, GraphError
from mimi_export.runtime.processor import instruction_set, processor_name
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import Array, StreamState

GOLDEN_NAME = "golden.safetensors"
TENSORS = {"input_values": "audio", "audio_codes": "codes", "latents": "latents", "audio_values": "decoded"}
SATURATING = ("sse4.1", "avx2", "avx512")  # instruction sets that add pairs of 8-bit products in 16 bits
LONGEST_HEADER = 1 << 20  # bytes of the clip's file
_DTYPES = {"I16": "<i2", "I32": "<i4", "F32": "<f4"}


def read_tensors(path: Path) -> tuple[dict[str, Array], Mapping[str, str]]:
    """The tensors of a safetensors file, and its metadata; `ArtifactError` for one that is damaged."""
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        if start > LONGEST_HEADER:
            raise ValueError(f"its header has {start} bytes")
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
    samples = (frames * artifact.geometry.frame_size,)
    every = {
        "codes": (artifact.manifest.shape.num_codebooks, frames),
        "latents": (frames, artifact.geometry.hidden_size),
        "decoded": samples,
    }
    given = [TENSORS[tensor.name] for spec in artifact.manifest.specs.values() for tensor in spec.data_outputs]
    wanted = {"audio": samples, **{name: every[name] for name in given}}
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


def check_rate(artifact: Artifact, graph: GraphSession) -> None:
    """Raise `GraphError` where a graph says that it is for another rate than its manifest: no state shows the rate."""
    said = graph.session.get_modelmeta().custom_metadata_map.get("sampling_rate")
    rate = artifact.geometry.sampling_rate
    if said not in (None, str(rate)):
        raise GraphError(f"{graph.path} is for {shown(said)} Hz, but its manifest says {rate}; get both again")


def run_clip(graph: GraphSession, clip: Mapping[str, Array]) -> dict[str, Array]:
    """What a new stream of a graph makes of what the clip has for it, as the clip keeps it.

    One frame a call, or what the graph is fixed to; one of a fixed batch gets the same in every row, and its first row
    counts.
    """
    spec, rows = graph.spec, graph.spec.shape.rows or 1
    data = clip[TENSORS[spec.data_input.name]]
    if spec.kind == "encoder":
        data = data.astype(np.float32)[None] / np.float32(32768)
    elif data.dtype.kind == "i":
        data = data.astype(np.int64)
    size = spec.unit * (spec.shape.frames_per_call or 1)
    data, axis = np.repeat(data[None], rows, axis=0), spec.data_input.time_axis
    state = StreamState(graph, rows)
    pieces = np.split(data, range(size, data.shape[axis], size), axis)
    calls = [_checked(state, spec, piece) for piece in pieces]
    outputs = zip(spec.data_outputs, zip(*calls, strict=True), strict=True)
    found = {TENSORS[tensor.name]: np.concatenate(parts, tensor.time_axis)[0] for tensor, parts in outputs}
    found |= {"codes": found["codes"].astype(np.int32)} if "codes" in found else {}
    return found | ({"decoded": found["decoded"][0]} if "decoded" in found else {})


def _checked(state: StreamState, spec: GraphSpec, call: Array) -> tuple[Array, ...]:
    """The outputs of a call whose states have the shapes of the contract; a free length may only grow."""
    before = state.snapshot()
    output = state.step(call)
    for name, array in state.snapshot().items():
        wanted, old = spec.state(name).present_shape, before[name].shape
        fits = array.ndim == len(wanted) and all(
            real >= size if dim == PRESENT else real == (size if isinstance(dim, str) else dim)
            for dim, size, real in zip(wanted, old, array.shape, strict=True)
        )
        if not fits:
            raise GraphError(f"{spec.file_name}: present_{name} has shape {list(array.shape)}, expected {list(wanted)}")
    return output


def snr_db(reference: Array, result: Array) -> float:
    """How near a result is to what it should be."""
    wanted = reference.astype(np.float64)
    return decibels(float(np.square(wanted).sum()), float(np.square(result - wanted).sum()))
