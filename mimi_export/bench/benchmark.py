"""One benchmark from variant directories to a report, and the files that hold it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimi_export.bench.contenders import baseline_contenders, variant_contenders
from mimi_export.bench.machine import Machine, measure_machine
from mimi_export.bench.plan import Plan
from mimi_export.bench.report import as_json, markdown
from mimi_export.bench.rounds import run_rounds
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.manifest import MANIFEST_NAME
from mimi_export.contract.progress import Advance, no_progress
from mimi_export.errors import ArtifactError, AudioError, ConfigError
from mimi_export.runtime.session import provider_name

REPORT_NAME = "bench.json"


def default_directories(root: Path, num_codebooks: int = 8) -> list[Path]:
    """All variants below `root` with so many codebooks, or latents, by name; `ArtifactError` if there is none."""
    found = [path.parent for path in sorted(root.glob(f"*/{MANIFEST_NAME}"))]
    fitting = [path for path in found if load_artifact(path).manifest.shape.num_codebooks in (0, num_codebooks)]
    if not fitting:
        raise ArtifactError(
            f"{root} holds no variant with {num_codebooks} codebooks; name directories, or make them with "
            "`mimi-export export` or `mimi-export build`"
        )
    return fitting


def benchmark(
    directories: Sequence[Path],
    plan: Plan,
    *,
    model: str | None = None,
    revision: str | None = None,
    public: bool = True,
    peers: bool = True,
    peers_python: str | None = None,
    audio: NDArray[np.float32] | None = None,
    progress: Advance = no_progress,
) -> dict[str, Any]:
    """Measure variants, the public design and other programs side by side.

    Args:
        directories: variants of one model.
        plan: what to measure.
        model: whose weights the public design and the other programs get; by default what the first variant was
            exported from.
        revision: of `model`.
        public: whether the public design takes part.
        peers: whether `transformers` takes part.
        peers_python: an interpreter with `moshi` and `rustymimi`, if they take part.
        audio: `[n]` at the model's rate, what encoders get; generated speech unless given.
        progress: told of each step.

    Returns:
        The report, see `report`.

    Raises:
        ArtifactError, ConfigError, CheckpointError, AudioError: an input does not fit; nothing was measured.
        MimiExportError: a graph failed.
    """
    if not directories:
        raise ConfigError("there is nothing to measure: give at least one variant directory")
    plan = replace(plan, provider=provider_name(plan.provider))
    first = load_artifact(directories[0])
    contenders = variant_contenders(directories)
    longest = max(contender.frames_per_call for contender in contenders) * first.geometry.frame_size
    if audio is not None and len(audio) < longest:
        raise AudioError(f"the recording has {len(audio)} samples, one call takes {longest}; give a longer one")
    source = first.manifest.source
    if public or peers or peers_python is not None:
        from mimi_export.model.checkpoint import load_checkpoint, load_source

        load = partial(load_source, source.model, source.revision)
        if model is not None:
            load = partial(load_checkpoint, model, revision)
        count = max(contender.num_codebooks for contender in contenders) or 8
        contenders += baseline_contenders(
            model or source.model, load, count,
            public=public, peers=peers, peers_python=peers_python, progress=lambda step: progress(step, 0, 0),
        )  # fmt: skip
    before = _machines(plan, progress)
    with tempfile.TemporaryDirectory() as folder:
        file = None
        if audio is not None:
            file = Path(folder) / "audio.npy"
            np.save(file, audio)
        results = run_rounds(contenders, plan, file, progress)
    machines = [now.best(then) for now, then in zip(_machines(plan, progress), before, strict=True)]
    frame_ms = 1000 / first.geometry.frame_rate
    return as_json(model or source.model, frame_ms, plan, machines, contenders, results)


def write_report(report: dict[str, Any], directory: str | os.PathLike[str], force: bool = False) -> list[Path]:
    """Write `bench.json`, `bench.md`, `bench.svg` and `bench.png` to a new directory.

    Raises:
        OutputError: the directory exists and `force` is not given, or cannot be written.
    """
    from mimi_export.bench.plot import draw

    with atomic_directory(directory, force, marker=REPORT_NAME) as temporary:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / REPORT_NAME).write_text(text + "\n", "utf-8")
        (temporary / "bench.md").write_text(markdown(report), "utf-8")
        for suffix in (".svg", ".png"):
            draw(report, temporary / f"bench{suffix}")
        names = sorted(path.name for path in temporary.iterdir())
    return [Path(directory) / name for name in names]


def _machines(plan: Plan, progress: Advance) -> list[Machine]:
    """The machine with every number of threads."""
    found = []
    for index, threads in enumerate(plan.threads):
        progress("measuring the machine", index, len(plan.threads))
        found.append(measure_machine(threads))
    return found
