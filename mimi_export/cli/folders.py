"""All files below a folder through a codec, to a folder of the same tree.

A file whose result is newer than itself and the variant is left alone. With a ring variant several files go through one
graph call, each in a row of a pool; with a window variant one after the other. What fails is told at the end and
stops nothing else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from mimi_export.cli import transfer
from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.transfer import Job
from mimi_export.errors import ConfigError, MimiExportError, OutputError
from mimi_export.media.audio import AudioReader, Samples
from mimi_export.media.codes import FORMATS as CODE_FORMATS
from mimi_export.media.codes import CodesWriter
from mimi_export.media.sources import ENDINGS as AUDIO_ENDINGS
from mimi_export.runtime import Codec, load
from mimi_export.runtime.clips import Clip, ClipEncoder

ENDINGS = {"encode": AUDIO_ENDINGS, "decode": frozenset(CODE_FORMATS)}
RESULT = {"encode": ".safetensors", "decode": ".wav"}

Progress = Callable[[str, float, float | None], None]


@dataclasses.dataclass
class Outcome:
    """What was done: files, how many were done before, errors by file, samples of a channel, seconds."""

    done: list[Path] = dataclasses.field(default_factory=list)
    unchanged: int = 0
    errors: dict[Path, MimiExportError] = dataclasses.field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0


def show(command: str, job: Job, variant: Path, threads: int, provider: str, json: bool) -> None:
    """Do all files below a folder and print one summary; the exit code is that of the first error."""
    jobs = plan(job, command)
    codec = load(variant, threads, (provider,))
    with Steps() as steps:
        outcome = run(codec, jobs, command, steps.advance, redo=job.force)
    numbers = {"done": len(outcome.done), "unchanged": outcome.unchanged, "failed": len(outcome.errors)}
    duration = outcome.samples / codec.geometry.sampling_rate
    speed = duration / max(outcome.seconds, 1e-9)
    caution = codec.artifact.manifest.source.caution
    if json:
        files = {"input": str(job.source), "output": str(job.target), "variant": str(variant), "caution": caution}
        errors = {str(path): str(error) for path, error in outcome.errors.items()}
        show_json({"command": command, **files, **numbers, "duration": duration, "speed": speed, "errors": errors})
    else:
        rows = [("weights", caution)] if caution else []
        counts = ", ".join(f"{count} {name}" for name, count in numbers.items())
        sound = f"{duration:.2f} s of sound, {speed:.1f} times real time"
        show_rows(str(job.target), [*rows, ("files", counts), ("duration", sound)])
    for error in outcome.errors.values():
        note(f"failed: {error}")
    if outcome.errors:
        raise typer.Exit(next(iter(outcome.errors.values())).exit_code)


def plan(job: Job, command: str) -> list[Job]:
    """A job for each file below `job.source`.

    Raises:
        ConfigError: there is none, or `job.target` lies in the folder or is a file.
        OutputError: two files would become one.
    """
    if job.target.exists() and not job.target.is_dir():
        raise ConfigError(f"{job.source} is a folder, so {job.target} must be one, too")
    if job.target.resolve().is_relative_to(job.source.resolve()):
        raise ConfigError(f"{job.target} lies in {job.source}; choose a folder beside it")
    jobs: dict[Path, Job] = {}
    for path in sorted(job.source.rglob("*")):
        if path.suffix.lower() in ENDINGS[command] and path.is_file():
            target = (job.target / path.relative_to(job.source)).with_suffix(RESULT[command])
            if target in jobs:
                raise OutputError(f"{jobs[target].source} and {path} would both become {target}; rename one")
            jobs[target] = dataclasses.replace(job, source=path, target=target, force=True)
    if not jobs:
        raise ConfigError(f"{job.source} holds no file with one of {', '.join(sorted(ENDINGS[command]))}")
    return list(jobs.values())


def run(codec: Codec, jobs: list[Job], command: str, progress: Progress, redo: bool = False) -> Outcome:
    """Do the jobs whose results are missing or older than what they are made of, all of them with `redo`."""
    outcome = Outcome()
    made = (codec.artifact.path / "manifest.json").stat().st_mtime
    waiting = [job for job in jobs if redo or not _is_done(job, made)]
    outcome.unchanged = len(jobs) - len(waiting)
    shape, begin = codec.artifact.manifest.shape, time.perf_counter()
    pooled = command == "encode" and shape.layout == "ring" and not any(job.separate for job in waiting)
    batches = _pooled(codec, waiting) if pooled else (_one(codec, job, command) for job in waiting)
    for number, (job, result) in enumerate(batches, 1):
        progress(f"{command}: {job.source.parent}", number, len(waiting))
        if isinstance(result, MimiExportError):
            outcome.errors[job.source] = result
        else:
            outcome.done.append(job.target)
            outcome.samples += result
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _is_done(job: Job, made: float) -> bool:
    try:
        return job.target.stat().st_mtime >= max(job.source.stat().st_mtime, made)
    except OSError:
        return False


def _one(codec: Codec, job: Job, command: str) -> tuple[Job, int | MimiExportError]:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        if command == "encode":
            return job, transfer.encode(codec, job).samples
        return job, transfer.decode(codec, transfer.open_codes(job.source), job).samples
    except MimiExportError as error:
        return job, error


def _pooled(codec: Codec, jobs: list[Job]) -> Iterator[tuple[Job, int | MimiExportError]]:
    """Encode several files at once; results in the order in which they end."""
    waiting, rate = iter(jobs), codec.geometry.sampling_rate

    def blocks(job: Job) -> Iterator[Samples]:
        transfer.chosen_codebooks(codec, job.num_codebooks)
        with AudioReader(job.source, rate) as reader:
            yield from reader

    def take(_wait: bool) -> Clip[Job] | None:
        return next((Clip(job, blocks(job)) for job in waiting), None)

    for job, samples, codes, _, error in ClipEncoder(codec.encoder).run(take):
        try:
            if error is not None or codes is None:
                raise error or ConfigError(f"{codec.artifact.path} gives no codes")
            job.target.parent.mkdir(parents=True, exist_ok=True)
            with CodesWriter(job.target, transfer.codes_metadata(codec), job.force) as writer:
                writer.append(codes[: job.num_codebooks])
                writer.num_samples = samples
        except MimiExportError as caught:
            yield job, caught
        else:
            yield job, samples
