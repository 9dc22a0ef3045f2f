"""Make a variant of lower precision from a finished fp32 variant: a directory in, a directory out.

    fp16   weights stored as float16, arithmetic in float32: half the download, a drop-in replacement
    int8   products of 8-bit integers; what is left of large weights stored as float16

Large weights are those that count for the size; small ones stay float32. The encoder's codebooks do, too, unless asked
for: the search then sees what was fitted. `sensitivity` measures what each group of weights costs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from mimi_export import __version__
from mimi_export.contract.directory import Artifact, load_artifact, write_manifest
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.geometry import Geometry
from mimi_export.contract.manifest import Manifest, metadata_props
from mimi_export.contract.precision import Int8Options, Options
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GraphKind, GraphSpec
from mimi_export.errors import ArtifactError, OutputError
from mimi_export.export.calibration import Calibration
from mimi_export.export.precision import Form, Forms, check_patterns, weight_forms
from mimi_export.passes.fp16_weights import HalfWeights, HalfWeightsResult
from mimi_export.passes.int8_codebooks import RoundedCodebooks
from mimi_export.passes.int8_matmuls import IntegerMatmuls
from mimi_export.passes.interface import SetMetadata
from mimi_export.passes.rounding import Rounded
from mimi_export.runtime.golden import copy_golden, replay_golden
from mimi_export.runtime.integers import check_integers
from mimi_export.runtime.session import GraphSession

FP32 = "fp32"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedGraph:
    """A graph after its passes, the form of each of its weights, and how many values became zero as float16."""

    model: ir.Model
    forms: Forms
    underflows: int


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the new manifest, and what was done to each graph."""

    manifest: Manifest
    graphs: dict[GraphKind, ConvertedGraph]

    @property
    def underflows(self) -> int:
        """Weights that were not zero and are zero as float16."""
        return sum(graph.underflows for graph in self.graphs.values())


def convert(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    options: Options,
    *,
    name: str | None = None,
    force: bool = False,
    progress: Progress = logger.info,
) -> Conversion:
    """Convert a finished fp32 variant directory; nothing is at `output_dir` until everything is.

    Args:
        input_dir: the parent; every file of it is checked against its manifest.
        output_dir: the directory to make.
        options: which precision, and how.
        name: the new variant's name; the directory's by default.
        force: replace an earlier variant directory.
        progress: told of each step.

    Raises:
        ArtifactError: the parent is no variant, incomplete, changed, or converted already.
        GraphError: a graph of the parent is not the manifest's, a weight does not fit into float16, or the result does
            not load or run.
        ConfigError: a pattern fits no weight.
        OutputError: the directory exists and `force` is not given, cannot be written, or is the parent.
    """
    source, target = Path(input_dir), Path(output_dir)
    if source.resolve() == target.resolve():
        raise OutputError(f"{target} is the directory to convert; choose another one for the result")
    parent = load_artifact(source, verify_hashes=True)
    found = parent.manifest
    if found.precision != FP32 or found.conversion:
        raise ArtifactError(f"{source} is {found.precision} already; convert the {FP32} variant that it was made from")
    with atomic_directory(target, force) as directory:
        graphs: dict[GraphKind, ConvertedGraph] = {}
        models = {kind: ir.load(parent.graph_path(kind)) for kind in parent.manifest.shape.kinds}
        _refuse_mixed(parent, models)
        check_patterns(models, options)
        calibration = calibration_for(options, parent.geometry)
        for kind in parent.manifest.shape.kinds:
            progress(f"converting the {kind} to {options.precision}")
            graphs[kind] = convert_graph(models[kind], parent.spec(kind), options, calibration, progress)
        counts = {kind: dict(sorted(Counter(graph.forms.values()).items())) for kind, graph in graphs.items()}
        hashes = {file: entry.sha256 for file, entry in sorted(found.files.items())}
        manifest = dataclasses.replace(
            found,
            name=name or target.resolve().name,
            precision=options.precision,
            conversion=[
                {"parent": found.name, "files": hashes},
                {**options.record(), **(calibration.record() if calibration else {})},
                *({"graph": kind, "weights": weights} for kind, weights in counts.items()),
            ],
            files={},
        )
        for kind, spec in manifest.specs.items():
            progress(f"writing and checking {spec.file_name}")
            path = directory / spec.file_name
            ir.save(SetMetadata(metadata_props(manifest), __version__)(graphs[kind].model).model, path)
            onnx.checker.check_model(str(path), full_check=True)
            check_integers(path)
        copy_golden(parent, directory)
        manifest = write_manifest(directory, manifest)
        progress("running the golden clip")
        replay_golden(load_artifact(directory))  # refuses graphs that do not run or hand on other states
    return Conversion(manifest, graphs)


def convert_graph(
    model: ir.Model,
    spec: GraphSpec,
    options: Options,
    calibration: Calibration | None = None,
    progress: Progress = logger.info,
) -> ConvertedGraph:
    """Run the passes of one graph; `model` is left as it is.

    Args:
        model: the graph.
        spec: its inputs and outputs.
        options: which precision, and how.
        calibration: for int8; has heard the encoder before it comes to a decoder.
        progress: told of each step.

    Raises:
        ArtifactError: a pass refuses the graph.
        GraphError: a weight does not fit into float16.
    """
    forms = weight_forms(model, spec.kind, options)
    rounded: dict[str, Rounded] = {}
    if calibration is not None:
        rounded = calibration.round(model, spec, names_of(forms, "int8"), progress)
    return rewrite_graph(model, spec.kind, forms, rounded)


def rewrite_graph(model: ir.Model, kind: GraphKind, forms: Forms, rounded: Mapping[str, Rounded]) -> ConvertedGraph:
    """Give each weight of a graph its form; `rounded` has the codes of those that become int8."""
    steps = (
        IntegerMatmuls({name: rounded[name] for name in names_of(forms, "int8")}),
        RoundedCodebooks(names_of(forms, "codebook")),
        HalfWeights(names_of(forms, "float16")),
    )
    underflows = 0
    for step in steps:
        try:
            result = step(model)
        except ir.passes.PreconditionError as error:
            raise ArtifactError(f"the {kind} cannot be converted: {error}") from error
        model = result.model
        if isinstance(result, HalfWeightsResult):
            underflows = sum(result.underflows.values())
    return ConvertedGraph(model, forms, underflows)


def calibration_for(options: Options, geometry: Geometry) -> Calibration | None:
    """What int8 weights are rounded by; float16 needs nothing.

    Raises:
        AudioError: a recording cannot be read.
    """
    return Calibration(geometry, options.calibrate) if isinstance(options, Int8Options) else None


def names_of(forms: Forms, wanted: Form) -> set[str]:
    """Weights of one form."""
    return {name for name, form in forms.items() if form == wanted}


def _refuse_mixed(parent: Artifact, models: dict[GraphKind, ir.Model]) -> None:
    """Compare each graph, and what it says about itself, with the manifest, which may have been written over it."""
    for kind, model in models.items():
        GraphSession(parent.graph_path(kind), parent.spec(kind))
        found, wanted = model.metadata_props.get("precision"), parent.manifest.precision
        if found != wanted:
            raise ArtifactError(
                f"{parent.graph_path(kind)} says that it is {found}, the manifest says {wanted}: files of two variants "
                "are mixed here; export it again"
            )
