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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mimi_export.media.signals import speech_like
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


@dataclass(frozen=True)
class Row:
    """One conversion: which group stayed float32, and what came of it, against all groups in 8 bits."""

    graph: GraphKind
    group: str
    snr_db: float
    gained_db: float
    more_mib: float
    more_ms: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def cells(self) -> tuple[str | float, ...]:
        """For a table."""
        numbers = (self.snr_db, self.gained_db, self.more_mib, self.more_ms)
        return (self.graph, self.group, *(round(number, 2) for number in numbers))


@dataclass(frozen=True)
class _Trial:
    snr_db: float
    mib: float
    graph: TappedGraph


def speech_clip(sampling_rate: int, seconds: float) -> Clip:
    """Generated speech-like sound, where no recording is given."""
    return Clip("speech_like", samples=speech_like(seconds, 1, sampling_rate))


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
        for kind in artifact.manifest.shape.kinds:  # the encoder first, which calibrates the decoder
            rows += _Graph(artifact, kind, truth, options, seconds, calibration, provider, progress).rows()
    return rows


class _Graph:
    """The trials of one graph."""

    def __init__(
        self,
        artifact: Artifact,
        kind: GraphKind,
        truth: ReferenceClip,
        options: Int8Options,
        seconds: float,
        calibration: Calibration,
        provider: str,
        progress: Progress,
    ) -> None:
        self.spec, self.kind, self.options = artifact.spec(kind), kind, options
        self.truth, self.provider, self.progress = truth, provider, progress
        self.frames_per_call = self.spec.shape.frames_per_call or 1
        self.calls = max(1, math.ceil(int(seconds * artifact.geometry.frame_rate) / self.frames_per_call))
        self.model = ir.load(artifact.graph_path(kind))
        forms = weight_forms(self.model, kind, options)
        self.groups = weight_groups(names_of(forms, "int8"))
        self.rounded = calibration.round(self.model, self.spec, names_of(forms, "int8"), progress)

    def rows(self) -> list[Row]:
        base = self._try("everything in 8 bits", self.options)
        rows = []
        for group in self.groups:
            kept = (*self.options.keep_float, f"{self.kind}:{group}")
            trial = self._try(f"{group} in float32", dataclasses.replace(self.options, keep_float=kept))
            more_ms = self._more_ms(base.graph, trial.graph)
            rows.append(Row(self.kind, group, trial.snr_db, trial.snr_db - base.snr_db, trial.mib - base.mib, more_ms))
        rows.sort(key=lambda row: -row.gained_db)
        return [Row(self.kind, "(all)", base.snr_db, 0.0, 0.0, 0.0), *rows]

    def _try(self, text: str, options: Int8Options) -> _Trial:
        self.progress(f"{self.kind}: {text}")
        forms = weight_forms(self.model, self.kind, options)
        model = rewrite_graph(self.model, self.kind, forms, self.rounded).model
        with scratch_directory("sensitivity") as folder:
            path = Path(folder) / self.spec.file_name
            ir.save(model, path)
            mib = path.stat().st_size / 2**20
            taps = ("latents",) if self.kind == "encoder" else ()
            graph = TappedGraph(path, self.spec, taps, self.provider)
        return _Trial(self._snr_db(graph), mib, graph)

    def _snr_db(self, graph: TappedGraph) -> float:
        comparison, states = Comparison(), graph.initial_states()
        for call in itertools.islice(self.truth.calls([self.frames_per_call]), self.calls):
            shown, states = graph.step(graph_input(call, self.spec), states)
            if self.kind == "encoder":
                comparison.push(call.latents, shown["latents"][0, : call.codes.shape[1]].T)
            else:
                wanted = call.audio[self.spec.shape.decoded_codebooks or 0]
                comparison.push(wanted, shown["audio_values"][0, 0, : len(wanted)])
        return comparison.snr_db

    def _more_ms(self, first: TappedGraph, second: TappedGraph) -> float:
        """Median of the differences of calls made in turn, on states that have filled."""
        fixed = self.spec.shape.frames_per_call
        data, filling = (
            graph_input(next(self.truth.calls([fixed or frames])), self.spec) for frames in (1, FILLING_FRAMES)
        )
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
