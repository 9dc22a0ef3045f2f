"""Measure and judge any number of variant directories against the models they were made from.

`check_parity` is the command; `parity_gate` is what `build` asks of a variant before it counts as good.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mimi_export.contract.directory import Artifact, load_artifact
from mimi_export.contract.progress import Progress
from mimi_export.contract.recipes import ConvertRecipe, Variant
from mimi_export.errors import ArtifactError, ParityError
from mimi_export.media.signals import speech_like
from mimi_export.model.checkpoint import Checkpoint, load_checkpoint, load_source
from mimi_export.parity.checks import budgets_for, judge
from mimi_export.parity.clips import Clip, default_clips
from mimi_export.parity.depth import DEFAULT, Depth
from mimi_export.parity.explain import explain
from mimi_export.parity.listen import listen
from mimi_export.parity.measure import measure
from mimi_export.parity.reference import Reference, wanted_codebooks
from mimi_export.parity.results import NotMeasured, ParityRun
from mimi_export.parity.structure import Tracer

GATE_SECONDS = 16.0  # more than the attention window of 10 s
GATE = replace(DEFAULT, calls=(1, "mixed"), structure=False)  # the graphs were traced just now

Load = Callable[[str, str | None], Checkpoint]
logger = logging.getLogger(__name__)


def check_parity(
    directories: Sequence[str | os.PathLike[str]],
    clips: Sequence[Clip] | None = None,
    *,
    model: str | None = None,
    revision: str | None = None,
    frames_per_call: Sequence[int | str] | None = None,
    depth: Depth = DEFAULT,
    variants: Mapping[str, Variant] | None = None,
    explain_failures: bool = False,
    provider: str = "cpu",
    progress: Progress = logger.info,
    load: Load = load_checkpoint,
) -> ParityRun:
    """Measure every directory; one that cannot be measured does not keep the others from it.

    Args:
        directories: variant directories.
        clips: what to listen to; `default_clips` by default.
        model: the reference; by default what each variant's manifest names.
        revision: of `model`.
        frames_per_call: see `measure`; those of `depth` by default.
        depth: how much to look at; reports say what was skipped.
        variants: configurations by name, for their budgets.
        explain_failures: look for the place that is to blame in variants that miss a budget.
        provider: what computes the variants' graphs.
        progress: told of each step.
        load: how a checkpoint is loaded from model and revision.

    Raises:
        CheckpointError: a reference cannot be had.
        AudioError: a clip cannot be read.
        ConfigError: there is no such provider, or it does not start.
    """
    run, ways = ParityRun([]), frames_per_call or depth.calls
    groups: dict[tuple[str, str | None], list[Artifact]] = {}
    for directory in dict.fromkeys(os.fspath(directory) for directory in directories):
        try:
            artifact = load_artifact(directory, verify_hashes=True)
        except ArtifactError as error:
            run.not_measured.append(NotMeasured(str(directory), str(error)))
            continue
        source = artifact.manifest.source
        key = (source.model, source.revision) if model is None else (model, revision)
        groups.setdefault(key, []).append(artifact)
    for (name, wanted), artifacts in groups.items():
        progress(f"loading {name}")
        try:
            checkpoint = load_source(name, wanted, load) if model is None else load(model, revision)
        except ArtifactError as error:
            run.not_measured += [NotMeasured(str(artifact.path), str(error)) for artifact in artifacts]
            continue
        rate = checkpoint.geometry.sampling_rate
        listed = default_clips(rate, depth.speech_seconds, depth.stress) if clips is None else clips
        counts = wanted_codebooks(artifact.manifest.shape for artifact in artifacts)
        fitting = [count for count in counts if count <= checkpoint.geometry.num_quantizers]
        with Reference(checkpoint, fitting, progress) as reference, Tracer(checkpoint) as tracer:
            for artifact in artifacts:
                if depth.structure and artifact.geometry == checkpoint.geometry:
                    tracer.begin(artifact)
            for artifact in artifacts:
                try:
                    report = measure(
                        artifact, checkpoint, listed, ways, progress, reference, depth.situations, provider
                    )
                    report.skipped = depth.skipped()
                    if depth.structure:
                        progress(f"{report.name}: beside the graphs traced anew")
                        tracer.judge(artifact, report)
                    if depth.listen and report.clips[0].excerpt.result.size:
                        progress(f"{report.name}: what a listener would notice")
                        report.heard = listen(report.clips[0].excerpt, rate, artifact.manifest.source.model)
                    report.checks = judge(report, budgets_for(artifact.manifest, variants or {}))
                    if explain_failures and not report.passed:
                        progress(f"{report.name}: looking for the place that differs")
                        report.explanations = explain(artifact, reference, reference.clip(listed[0]), provider)
                    run.reports.append(report)
                except ArtifactError as error:
                    run.not_measured.append(NotMeasured(str(artifact.path), str(error)))
    return run


def parity_gate(
    variants: Mapping[str, Variant], load: Load, model: str | None, revision: str | None, progress: Progress
) -> Callable[[Variant, Path], None]:
    """What judges built variants by the budgets of `variants`, configurations by name; `check_parity` measures more.

    The reference is `model` at `revision`, or what each variant's configuration, or its parent's, names. What is given
    back raises `ParityError`, naming every missed budget, unless the variant at a path is good.
    """

    def gate(variant: Variant, path: Path) -> None:
        recipe = variant.recipe
        while isinstance(recipe, ConvertRecipe):
            recipe = variants[recipe.parent].recipe
        name, wanted = (model, revision) if model else (recipe.model, recipe.revision)
        clips = [Clip("speech", speech_like(GATE_SECONDS))]
        run = check_parity(
            [path], clips, model=name, revision=wanted, depth=GATE, variants=variants, progress=progress, load=load
        )
        if run.problems:
            raise ParityError(
                f"{variant.name} is not good, so nothing is kept of it (--no-check keeps it to look at): "
                f"{'; '.join(run.problems)}"
            )

    return gate
