"""Make a variant of lower precision from a finished fp32 variant: a directory in, a directory out.

    fp16   weights stored as float16, arithmetic in float32: half the download, a drop-in replacement
    int8   products of 8-bit integers; what is left of large weights stored as float16

Nothing is guessed: `sensitivity` measures what each group of weights costs, and the defaults here are its result on
the synthetic checkpoint. The encoder's codebooks stay float32, unless asked for: the search then sees what was fitted.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from mimi_export import __version__
from mimi_export.contract.directory import Artifact, Manifest, load_artifact, metadata_props, write_manifest
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.recipes import ConvertRecipe
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind
from mimi_export.errors import ArtifactError, OutputError
from mimi_export.export.precision import (
    CODEBOOKS,
    Fp16Options,
    Int8Options,
    Options,
    check_patterns,
    fewest_elements,
    kept_float,
    patterns_for,
)  # fmt: skip
from mimi_export.passes.fp16_weights import HalfWeights, HalvedWeight
from mimi_export.passes.int8_block import BlockProducts
from mimi_export.passes.int8_codebooks import RoundedCodebooks
from mimi_export.passes.int8_dynamic import DynamicProducts
from mimi_export.passes.int8_products import RoundedWeight
from mimi_export.passes.int8_storage import StoredWeights
from mimi_export.passes.metadata import SetMetadata
from mimi_export.passes.weights import SCALES
from mimi_export.runtime.golden import write_golden

FP32 = "fp32"
Progress = Callable[[str], None]
logger = logging.getLogger(__name__)


Weight = HalvedWeight | RoundedWeight


@dataclass(frozen=True)
class ConvertedGraph:
    """A graph after its passes: the model, what was done to each weight, and a record for each pass."""

    model: ir.Model
    weights: tuple[Weight, ...]
    records: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the new manifest, and what was done to the weights of each graph."""

    manifest: Manifest
    weights: dict[GraphKind, tuple[Weight, ...]] = field(default_factory=dict)

    @property
    def underflows(self) -> int:
        """Weights that were not zero and are zero as float16."""
        return sum(weight.underflows for weight in self._all() if isinstance(weight, HalvedWeight))

    def _all(self) -> Iterator[Weight]:
        for weights in self.weights.values():
            yield from weights


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
        GraphError: a weight does not fit into float16, or the result does not load.
        ConfigError: a pattern fits no weight.
        OutputError: the directory exists and `force` is not given, cannot be written, or is the parent.
    """
    source, target = Path(input_dir), Path(output_dir)
    if source.resolve() == target.resolve():
        raise OutputError(f"{target} is the directory to convert; choose another one for the result")
    parent = load_artifact(source, verify_hashes=True)
    _refuse_converted(parent)
    precision = "fp16" if isinstance(options, Fp16Options) else "int8"
    with atomic_directory(target, force) as directory:
        graphs: dict[GraphKind, ConvertedGraph] = {}
        models = {kind: ir.load(parent.graph_path(kind)) for kind in GRAPH_KINDS}
        _refuse_mixed(parent, models)
        check_patterns(models, options)
        for kind in GRAPH_KINDS:
            progress(f"converting the {kind} to {precision}")
            graphs[kind] = convert_graph(models[kind], kind, options)
        manifest = dataclasses.replace(
            parent.manifest,
            name=name or target.resolve().name,
            precision=precision,
            conversion=[_parent_record(parent), *_join_records(graphs)],
            files={},
        )
        for kind in GRAPH_KINDS:
            spec = manifest.spec(kind)
            progress(f"writing and checking {spec.file_name}")
            path = directory / spec.file_name
            ir.save(SetMetadata(metadata_props(manifest), __version__)(graphs[kind].model).model, path)
            onnx.checker.check_model(str(path), full_check=True)
        progress("running the golden clip")
        write_golden(directory, manifest)
        manifest = write_manifest(directory, manifest)
    return Conversion(manifest, {kind: graph.weights for kind, graph in graphs.items()})


def convert_graph(model: ir.Model, kind: GraphKind, options: Options) -> ConvertedGraph:
    """Run the passes of one graph; `model` is left as it is.

    Raises:
        ArtifactError: a pass refuses the graph.
        GraphError: a weight does not fit into float16.
    """
    weights: list[Weight] = []
    records: list[dict[str, Any]] = []
    for step in _passes(model, kind, options):
        try:
            result: Any = step(model)
        except ir.passes.PreconditionError as error:
            raise ArtifactError(f"the {kind} cannot be converted: {error}") from error
        model = result.model
        weights += result.weights
        records.append({"pass": type(step).__name__, "graph": kind, "weights": len(result.weights), **_settings(step)})
    return ConvertedGraph(model, tuple(weights), tuple(records))


def convert_recipe(recipe: ConvertRecipe, parent: Path, directory: Path) -> Conversion:
    """What `build` calls: the conversion that a configuration describes, in place of an earlier result."""
    values: dict[str, Any] = dict(recipe.options)
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    kinds: dict[str, type[Fp16Options | Int8Options]] = {"fp16": Fp16Options, "int8": Int8Options}
    return convert(parent, directory, kinds[recipe.precision](**values), force=True)


CONVERTERS = {"fp16": convert_recipe, "int8": convert_recipe}


def _passes(model: ir.Model, kind: GraphKind, options: Options) -> Iterator[ir.passes.FunctionalPass]:
    keep = patterns_for(kind, kept_float(options))
    fewest = fewest_elements(model, options)
    if isinstance(options, Fp16Options):
        yield HalfWeights(keep, fewest)
        return
    store, fine = patterns_for(kind, options.store), patterns_for(kind, options.fine)
    books = patterns_for(kind, (CODEBOOKS,))
    others = (*keep, *store, *books)
    if options.target == "portable":
        yield DynamicProducts(("*",), others, fine, not options.signed, fewest)
    else:
        yield DynamicProducts(fine, others, fine, not options.signed, fewest)
        yield BlockProducts(("*",), (*others, *fine), options.block_size, options.bits, fewest)
    if options.codebooks:
        yield RoundedCodebooks(books, (*keep, *store), not options.signed)
    if store:
        yield StoredWeights(store, keep, min_elements=1)
    yield HalfWeights((*keep, f"*{SCALES}"), fewest_elements(model, Fp16Options()))


def _settings(step: ir.passes.FunctionalPass) -> dict[str, Any]:
    """What a pass was told, as plain JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(step).items()}


def _refuse_converted(parent: Artifact) -> None:
    manifest = parent.manifest
    if manifest.precision != FP32 or manifest.conversion:
        raise ArtifactError(
            f"{parent.path} is {manifest.precision} already; convert the {FP32} variant that it was made from"
        )


def _refuse_mixed(parent: Artifact, models: dict[GraphKind, ir.Model]) -> None:
    """Compare what each graph says about itself with the manifest, which may have been written over it."""
    for kind, model in models.items():
        found, wanted = model.metadata_props.get("precision"), parent.manifest.precision
        if found != wanted:
            raise ArtifactError(
                f"{parent.graph_path(kind)} says that it is {found}, the manifest says {wanted}: files of two variants "
                "are mixed here; export it again"
            )


def _parent_record(parent: Artifact) -> dict[str, Any]:
    manifest = parent.manifest
    return {"parent": manifest.name, "files": {name: entry.sha256 for name, entry in sorted(manifest.files.items())}}


def _join_records(graphs: dict[GraphKind, ConvertedGraph]) -> list[dict[str, Any]]:
    return [record for kind in GRAPH_KINDS for record in graphs[kind].records]
