"""What 8 bits cost, one group of weights at a time: decibels gained against MiB and milliseconds.

The graph is converted with every weight in 8 bits, then again and again with one group left in float32. Each result
streams a clip of speech, one frame a call; latents (encoder) or audio (decoder) are compared with batch PyTorch.
Milliseconds are differences of medians of calls that are made in turn.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from mimi_export.contract.directory import Artifact
from mimi_export.contract.files import scratch_directory
from mimi_export.contract.precision import Int8Options
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ArtifactError
from mimi_export.export.calibration import Calibration
from mimi_export.export.convert import names_of, rewrite_graph
from mimi_export.export.precision import weight_forms
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.parity.clips import Clip
from mimi_export.parity.explain import TappedGraph
from mimi_export.parity.metrics import Comparison
from mimi_export.parity.reference import Reference, ReferenceClip, graph_input, wanted_codebooks

TIMED_CALLS = 30
WARM_CALLS = 3
FILLING_FRAMES = 130  # of one call, after which the window is full
FIRST_OF_LAYERS = re.compile(r"(?<=\.)\d+(?=\.|$)")

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One conversion: which group stayed float32, and what came of it, against all groups in 8 bits."""

    graph: GraphKind
    group: str
    snr_db: float
    gained_db: float
    more_mib: float
    more_ms: float


def weight_groups(names: Iterable[str]) -> list[str]:
    """Patterns of weights: the same place in all transformer layers is one group, and so is each residual unit;
    everything else stands alone.
    """
    groups = [re.sub(r"_b\d\.weight$", "_b*.weight", FIRST_OF_LAYERS.sub("*", name)) for name in sorted(names)]
    return list(dict.fromkeys(groups))


def measure_sensitivity(
    artifact: Artifact,
    checkpoint: Checkpoint,
    clip: Clip,
    options: Int8Options,
    *,
    seconds: float = 12.0,
    provider: str = "cpu",
    progress: Progress = logger.info,
) -> list[Row]:
    """Measure every group of both graphs.

    Args:
        artifact: an fp32 variant.
        checkpoint: the model that it was made from.
        clip: what to stream.
        options: the conversion; its `keep_float` holds for every trial.
        seconds: how much of the clip to use.
        provider: what computes the trials' graphs; the calibration keeps to the processor.
        progress: told of each trial.

    Returns:
        For each graph: everything in 8 bits first, then the groups, the greatest gain first.

    Raises:
        ArtifactError: the variant is converted already.
        ConfigError: there is no such provider, or it does not start.
    """
    if artifact.manifest.precision != "fp32":
        raise ArtifactError(f"{artifact.path} is {artifact.manifest.precision} already; measure its fp32 parent")
    rows = []
    with Reference(checkpoint, wanted_codebooks([artifact.manifest.shape]), progress) as reference:
        truth = reference.clip(clip)
        calibration = Calibration(artifact.geometry, options.calibrate)
        calls = math.ceil(int(seconds * artifact.geometry.frame_rate) / (artifact.manifest.shape.frames_per_call or 1))
        for kind in artifact.manifest.shape.kinds:  # the encoder first, which calibrates the decoder
            rows += _rows(artifact, kind, truth, options, max(1, calls), calibration, provider, progress)
    return rows


def _rows(
    artifact: Artifact,
    kind: GraphKind,
    truth: ReferenceClip,
    options: Int8Options,
    calls: int,
    calibration: Calibration,
    provider: str,
    progress: Progress,
) -> list[Row]:
    """The trials of one graph."""
    spec, model = artifact.spec(kind), ir.load(artifact.graph_path(kind))
    names = names_of(weight_forms(model, kind, options), "int8")
    rounded = calibration.round(model, spec, names, progress)

    def attempt(text: str, options: Int8Options) -> tuple[TappedGraph, float, float]:
        """A conversion, its SNR in dB and its size in MiB."""
        progress(f"{kind}: {text}")
        converted = rewrite_graph(model, kind, weight_forms(model, kind, options), rounded).model
        with scratch_directory("sensitivity") as folder:
            path = Path(folder) / spec.file_name
            ir.save(converted, path)
            graph = TappedGraph(path, spec, ("latents",) if kind == "encoder" else (), provider)
            return graph, _snr_db(graph, truth, calls), path.stat().st_size / 2**20

    base, base_db, base_mib = attempt("everything in 8 bits", options)
    rows = []
    for group in weight_groups(names):
        kept = (*options.keep_float, f"{kind}:{group}")
        trial, db, mib = attempt(f"{group} in float32", dataclasses.replace(options, keep_float=kept))
        rows.append(Row(kind, group, db, db - base_db, mib - base_mib, _more_ms(base, trial, truth)))
    return [Row(kind, "(all)", base_db, 0.0, 0.0, 0.0), *sorted(rows, key=lambda row: -row.gained_db)]


def _snr_db(graph: TappedGraph, truth: ReferenceClip, calls: int) -> float:
    comparison, states = Comparison(), graph.initial_states()
    for call in itertools.islice(truth.calls([graph.spec.shape.frames_per_call or 1]), calls):
        shown, states = graph.step(graph_input(call, graph.spec), states)
        if graph.spec.kind == "encoder":
            comparison.push(call.latents, shown["latents"][0, : call.codes.shape[1]].T)
        else:
            wanted = call.audio[graph.spec.shape.decoded_codebooks or 0]
            comparison.push(wanted, shown["audio_values"][0, 0, : len(wanted)])
    return comparison.difference.snr_db


def _more_ms(first: TappedGraph, second: TappedGraph, truth: ReferenceClip) -> float:
    """Median of the differences of calls made in turn, on states that have filled."""
    spec = first.spec
    sizes = (spec.shape.frames_per_call or frames for frames in (1, FILLING_FRAMES))
    data, filling = (graph_input(next(truth.calls([size])), spec) for size in sizes)
    graphs = [(graph, graph.step(filling, graph.initial_states())[1]) for graph in (first, second)]
    differences = []
    for _ in range(WARM_CALLS + TIMED_CALLS):
        spent = []
        for graph, states in graphs:
            begin = time.perf_counter()
            graph.step(data, states)
            spent.append(time.perf_counter() - begin)
        differences.append(1000 * (spent[1] - spent[0]))
    return statistics.median(differences[WARM_CALLS:])
