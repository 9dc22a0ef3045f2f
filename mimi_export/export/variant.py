"""Write ONNX graphs from a checkpoint, and whole variant directories around them.

`torch.onnx.export` gets an example batch of 2 (with 1 it would fix the batch), 3 frames and a few past tokens, all
marked dynamic but for a batch that is to be fixed. Its result is finished by passes: the dimension names of the one
state definition, no local paths, and the essentials as metadata. The full checker of ONNX has the last word.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import opset20 as op
from torch import Tensor
from torch.export import Dim

from mimi_export import __version__
from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import Manifest, Source, metadata_props
from mimi_export.contract.spec import (
    BATCH,
    CODEBOOKS,
    FRAMES,
    GRAPH_KINDS,
    PAST,
    SAMPLES,
    GraphSpec,
    Shape,
    TensorSpec,
)
from mimi_export.errors import ConfigError
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import StreamingGraph, streaming_graph
from mimi_export.model.taps import Tapped
from mimi_export.passes.interface import SetInterface, SetMetadata
from mimi_export.passes.taps import RemoveTapOutputs
from mimi_export.runtime.golden import write_golden

OPSET = 20
EXAMPLE = {BATCH: 2, FRAMES: 3, CODEBOOKS: 3, PAST: 5}
INT64_MAX = 2**63 - 1
TOOLS = ("mimi-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript")

Progress = Callable[[str], None]
logger = logging.getLogger(__name__)


def export_variant(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    shape: Shape,
    *,
    name: str | None = None,
    opset: int = OPSET,
    force: bool = False,
    progress: Progress = logger.info,
) -> Manifest:
    """Write a variant directory: both graphs, `state_spec.txt` and `manifest.json`.

    Nothing is at `output_dir` until everything is.

    Args:
        checkpoint: the model.
        output_dir: the directory to make.
        shape: what the graphs take in a call.
        name: the variant's name; the directory's by default.
        opset: ONNX operator set to write.
        force: replace an earlier variant directory.
        progress: told of each step.

    Raises:
        ConfigError: this model has no such number of codebooks.
        OutputError: the directory exists and `force` is not given, or cannot be written.
    """
    manifest = Manifest(
        name or Path(output_dir).resolve().name,
        checkpoint.geometry,
        shape,
        Source(checkpoint.source, checkpoint.revision),
        tools=tool_versions(),
    )
    with atomic_directory(output_dir, force) as directory:
        for kind in GRAPH_KINDS:
            graph = manifest.spec(kind)
            progress(f"tracing the {kind}")
            model = onnx_program(streaming_graph(checkpoint, graph), opset)
            finish(model, graph, metadata_props(manifest))
            progress(f"writing and checking {graph.file_name}")
            ir.save(model, directory / graph.file_name)
            onnx.checker.check_model(str(directory / graph.file_name), full_check=True)
        progress("running the golden clip")
        write_golden(directory, manifest)
        manifest = write_manifest(directory, manifest)
        load_artifact(directory)
    return manifest


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide what a graph looks like; of torch without its build tag."""
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS if tool != "mimi-export"}
    return {"mimi-export": __version__, **{tool: version.split("+")[0] for tool, version in versions.items()}}


def finish(model: ir.Model, graph: GraphSpec, props: dict[str, str]) -> None:
    """Bring an exported model into the published form, in place."""
    ir.passes.Sequential(
        RemoveTapOutputs(),
        common.RemoveUnusedNodesPass(),
        SetInterface(graph),
        SetMetadata(props, __version__),
    )(model)


def keep_last_onnx(x: ir.Value, length: int) -> Any:
    """`steps.attention.keep_last` in ONNX: a slice from `-length` stops at the beginning by itself."""
    return op.Slice(x, [-length], [INT64_MAX], [2])


def write_slots_onnx(ring: ir.Value, places: ir.Value, new: ir.Value) -> Any:
    """`steps.attention.write_slots` in ONNX."""
    return op.ScatterND(ring, places, new)


def onnx_program(module: StreamingGraph, opset: int = OPSET) -> ir.Model:
    """Trace `module` into an ONNX model with the names of its `GraphSpec`.

    Raises:
        ConfigError: the exporter wrote another opset than the one asked for.
    """
    graph, geometry = module.graph, module.geometry
    arguments = tuple(_example(tensor, graph) for tensor in graph.inputs)
    dims = _dims(graph, geometry)
    shapes = tuple(
        {axis: dims[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)} for tensor in graph.inputs
    )
    with quiet_exporter(), torch.no_grad():
        tapped = Tapped(module, arguments)
        program = torch.onnx.export(
            tapped,
            arguments,
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=tapped.output_names,
            dynamic_shapes=(shapes[0], shapes[1:]),
            custom_translation_table={
                torch.ops.mimi_export.keep_last.default: keep_last_onnx,
                torch.ops.mimi_export.write_slots.default: write_slots_onnx,
            },
            verbose=False,
            optimize=True,
        )
    if program is None:
        raise ConfigError("torch.onnx.export returned nothing: it needs dynamo=True of torch 2.9 or later")
    model: ir.Model = program.model
    if model.opset_imports.get("") != opset:
        raise ConfigError(f"asked for opset {opset}, the exporter wrote {model.opset_imports.get('')}")
    return model


def _example(tensor: TensorSpec, graph: GraphSpec) -> Tensor:
    sizes = {
        **EXAMPLE,
        SAMPLES: EXAMPLE[FRAMES] * graph.frame_size,
        CODEBOOKS: min(EXAMPLE[CODEBOOKS], graph.shape.num_codebooks),
        PAST: min(EXAMPLE[PAST], graph.window_length),
    }
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
    return torch.zeros(shape, dtype=torch.int64 if tensor.dtype == "int64" else torch.float32)


def _dims(graph: GraphSpec, geometry: Geometry) -> dict[str, Any]:
    """Symbols of the free dimensions; samples are whole frames."""
    frames = Dim(FRAMES, min=1, max=2**20)
    return {
        BATCH: Dim(BATCH, min=1, max=2**16),
        FRAMES: frames,
        SAMPLES: geometry.frame_size * frames,
        CODEBOOKS: Dim(CODEBOOKS, min=1, max=max(2, graph.shape.num_codebooks)),
        PAST: Dim(PAST, min=0, max=geometry.sliding_window - 1),
    }


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress prints and notes about its own internals from the user's terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
