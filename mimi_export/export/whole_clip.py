"""Graphs for whole clips, in the directory that transformers.js loads.

    batch-32cb/
        config.json  preprocessor_config.json      as transformers saves them
        onnx/encoder_model.onnx                    input_values [B, 1, samples] -> audio_codes [B, K, frames]
        onnx/decoder_model.onnx                    audio_codes [B, 1 … K, frames] -> audio_values [B, 1, samples]
        onnx/…_fp16.onnx, …_quantized.onnx         the same in other precisions
        batch.json                                 what made them; size and SHA-256 of every file above

They are the streaming graphs with the states inside (`passes.whole_clip`), so whatever is proven of those holds here.
The encoder takes any length: it appends zeros up to a whole frame, as a stream's `flush` does and `moshi` does.
`MimiModel.encode` pads inside every convolution instead, so for a length that is no whole number of frames compare
with the reference on the padded clip. Memory for attention grows with the square of the length, as it does upstream:
some 70 MB for a minute. Longer audio is what the streaming graphs are for.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from mimi_export import __version__
from mimi_export.contract.directory import list_files
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import BATCH_MANIFEST, BatchManifest, Manifest, Source, metadata_props
from mimi_export.contract.precision import Fp16Options, Int8Options, Options
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind, GraphSpec, Shape, graph_spec
from mimi_export.errors import ConfigError
from mimi_export.export.convert import calibration_for, convert_graph
from mimi_export.export.trace import onnx_program
from mimi_export.export.variant import finish, tool_versions
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import streaming_graph
from mimi_export.passes.interface import SetInterface, SetMetadata
from mimi_export.passes.whole_clip import EncloseStates, PadToFrames
from mimi_export.runtime.integers import check_integers

GRAPH_FOLDER = "onnx"

logger = logging.getLogger(__name__)

# Data types by transformers.js' name -> what a file name ends with, and how they are made from float32 graphs.
DTYPES: dict[str, tuple[str, Options | None]] = {
    "fp32": ("", None),
    "fp16": ("_fp16", Fp16Options()),
    "q8": ("_quantized", Int8Options()),
}


def batch_spec(geometry: Geometry, kind: GraphKind, num_codebooks: int) -> GraphSpec:
    """Inputs and outputs of one graph: those of the streaming graph without its states."""
    return dataclasses.replace(graph_spec(geometry, kind, Shape(num_codebooks)), states=())


def export_batch(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    num_codebooks: int | None = None,
    *,
    name: str | None = None,
    dtypes: Sequence[str] = ("fp32",),
    force: bool = False,
    progress: Progress = logger.info,
    check: Callable[[Path], object] | None = None,
) -> BatchManifest:
    """Write a directory that transformers.js loads. Nothing is at `output_dir` until everything is.

    Args:
        checkpoint: the model.
        output_dir: the directory to make.
        num_codebooks: codes a frame; all that the model has by default, as `MimiModel.encode` gives.
        name: what the graphs are called; the directory's name by default.
        dtypes: data types to write, of `DTYPES`.
        force: replace an earlier directory of this kind.
        progress: told of each step.
        check: called with the finished directory before it takes its place; whatever it writes there stays.

    Raises:
        ConfigError: this model has no such number of codebooks, or no such data type.
        OutputError: the directory exists and `force` is not given, or cannot be written.
    """
    geometry = checkpoint.geometry
    count = geometry.num_quantizers if num_codebooks is None else num_codebooks
    geometry.check_num_codebooks(count)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ConfigError(f"there is no data type {dtype!r}; expected some of {', '.join(DTYPES)}")
    title, source = name or Path(output_dir).resolve().name, Source(checkpoint.source, checkpoint.revision)
    with atomic_directory(output_dir, force, marker=BATCH_MANIFEST) as directory:
        (directory / GRAPH_FOLDER).mkdir()
        written: dict[str, dict[GraphKind, str]] = {dtype: {} for dtype in dtypes}
        calibrations = {
            dtype: calibration_for(options, geometry)
            for dtype, (_, options) in DTYPES.items()
            if dtype in dtypes and options is not None
        }
        for kind in GRAPH_KINDS:
            progress(f"tracing the {kind}")
            spec = batch_spec(geometry, kind, count)
            model = batch_graph(checkpoint, kind, count)
            for dtype in dtypes:
                suffix, options = DTYPES[dtype]
                file = f"{GRAPH_FOLDER}/{kind}_model{suffix}.onnx"
                progress(f"writing and checking {file}")
                converted = model
                if options is not None:
                    converted = convert_graph(model, spec, options, calibrations[dtype], progress).model
                SetMetadata(_props(Manifest(title, geometry, Shape(count), source, dtype)), __version__)(converted)
                ir.save(converted, directory / file)
                onnx.checker.check_model(str(directory / file), full_check=True)
                check_integers(directory / file)
                written[dtype][kind] = file
        _write_json(directory / "config.json", config_json(checkpoint, count, dtypes))
        _write_json(directory / "preprocessor_config.json", preprocessor_json(geometry))
        manifest = BatchManifest(
            title, count, geometry.sampling_rate, geometry.frame_size, source, tool_versions(), written,
            list_files(directory, BATCH_MANIFEST),
        )  # fmt: skip
        _write_json(directory / BATCH_MANIFEST, manifest.to_dict())
        if check is not None:
            check(directory)
    return manifest


def batch_graph(checkpoint: Checkpoint, kind: GraphKind, num_codebooks: int) -> ir.Model:
    """One float32 graph for whole clips."""
    graph = graph_spec(checkpoint.geometry, kind, Shape(num_codebooks))
    model = onnx_program(streaming_graph(checkpoint, graph))
    finish(model, graph, {})
    EncloseStates(graph)(model)
    if kind == "encoder":
        PadToFrames(checkpoint.geometry.frame_size)(model)
    SetInterface(batch_spec(checkpoint.geometry, kind, num_codebooks))(model)
    return model


def config_json(checkpoint: Checkpoint, num_codebooks: int, dtypes: Sequence[str]) -> dict[str, Any]:
    """`config.json`: the model's own, for as many codebooks as the encoder gives.

    Browsers ask for the quantised files unless told otherwise, so where there are none the configuration says so.
    """
    fields: dict[str, Any] = {**checkpoint.model.config.to_dict(), "num_quantizers": num_codebooks}
    fields = {key: value for key, value in fields.items() if not key.startswith("_")}
    fields |= {"architectures": ["MimiModel"], "frame_rate": checkpoint.geometry.frame_rate}
    if "q8" not in dtypes:
        fields["transformers.js_config"] = {"dtype": dtypes[0]}
    return dict(sorted(fields.items()))


def preprocessor_json(geometry: Geometry) -> dict[str, Any]:
    """`preprocessor_config.json`: mono, no chunks."""
    return {
        "chunk_length_s": None,
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "overlap": None,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": geometry.sampling_rate,
    }


def _props(manifest: Manifest) -> dict[str, str]:
    """What a streaming graph says of itself, without what concerns calls and states."""
    streaming = {"format_version", "frames_per_call", "states"}
    props = {key: text for key, text in metadata_props(manifest).items() if key not in streaming}
    return {**props, "layout": "batch"}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
