"""Write ONNX graphs from a checkpoint, and whole variant directories around them.

What `trace` gives is finished by passes: the dimension names of the one state definition, no local paths, and the
essentials as metadata. The full checker of ONNX has the last word.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from mimi_export import __version__
from mimi_export.contract.directory import load_artifact, write_manifest
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.manifest import Manifest, Source, metadata_props
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GraphSpec, Head, Shape, Start
from mimi_export.errors import ConfigError
from mimi_export.export.trace import onnx_program
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import streaming_graph
from mimi_export.model.upstream import NO_DECODER, has_decoder
from mimi_export.passes.interface import SetInterface, SetMetadata
from mimi_export.passes.taps import RemoveTapOutputs
from mimi_export.runtime.golden import write_golden

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")

logger = logging.getLogger(__name__)


def export_variant(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    shape: Shape,
    *,
    name: str | None = None,
    force: bool = False,
    progress: Progress = logger.info,
) -> Manifest:
    """Write a variant directory: all graphs, `state_spec.txt` and `manifest.json`.

    Nothing is at `output_dir` until everything is.

    Args:
        checkpoint: the model.
        output_dir: the directory to make.
        shape: what the graphs take in a call.
        name: the variant's name; the directory's by default.
        force: replace an earlier variant directory.
        progress: told of each step.

    Raises:
        ConfigError: this model has no such number of codebooks, or no decoder.
        OutputError: the directory exists and `force` is not given, or cannot be written.
    """
    manifest = Manifest(
        name or Path(output_dir).resolve().name,
        checkpoint.geometry,
        shape,
        Source(checkpoint.source, checkpoint.revision),
        tools=tool_versions(),
    )
    if "decoder" in shape.kinds and not has_decoder(checkpoint.model):
        raise ConfigError(f"{checkpoint.source}: {NO_DECODER}")
    with atomic_directory(output_dir, force) as directory:
        for kind, graph in manifest.specs.items():
            progress(f"tracing the {kind}")
            model = onnx_program(streaming_graph(checkpoint, graph))
            finish(model, graph, metadata_props(manifest))
            progress(f"writing and checking {graph.file_name}")
            ir.save(model, directory / graph.file_name)
            onnx.checker.check_model(str(directory / graph.file_name), full_check=True)
        progress("running the golden clip")
        write_golden(directory, manifest)
        manifest = write_manifest(directory, manifest)
        load_artifact(directory)
    return manifest


def usual_start(checkpoint: Checkpoint, head: Head) -> Start:
    """What a decoder takes where nobody says: what the encoder gives, codes first; nothing where there is none."""
    if not has_decoder(checkpoint.model):
        return "nothing"
    return "latents" if head == "latents" else "codes"


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide what a graph looks like; of torch without its build tag."""
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
    return {"mimi-export": __version__, **{tool: version.split("+")[0] for tool, version in versions.items()}}


def finish(model: ir.Model, graph: GraphSpec, props: dict[str, str]) -> None:
    """Bring an exported model into the published form, in place."""
    ir.passes.Sequential(
        RemoveTapOutputs(), common.RemoveUnusedNodesPass(), SetInterface(graph), SetMetadata(props, __version__)
    )(model)
