"""All files below a folder through a codec, to a folder of the same tree.

A file whose result is newer than itself and the variant is left alone. With a ring variant several files go through one
graph call, each in a row of a pool; with a window variant one after the other. What fails is told at the end and
stops nothing else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import typer

from mimi_export.cli import transfer
from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.transfer import Job
from mimi_export.contract.manifest import MANIFEST_NAME
from mimi_export.errors import ConfigError, MimiExportError, OutputError
from mimi_export.media.audio import AudioReader, Samples
from mimi_export.media.codes import FORMATS as CODE_FORMATS
from mimi_export.media.codes import CodesWriter
from mimi_export.media.sources import ENDINGS as AUDIO_ENDINGS
from mimi_export.runtime import Codec, load
from mimi_export.runtime.clips import Clip, ClipEncoder

ENDINGS = {"encode": AUDIO_ENDINGS, "decode": frozenset(CODE_FORMATS)}
RESULT = {"encode": ".safetensors", "decode": ".wav"}


def show(command: str, job: Job, variant: Path, threads: int, provider: str, json: bool) -> None:
    """Do all files below a folder and print one summary; the exit code is that of the first error."""
    jobs = plan(job, command)
    codec = load(variant, threads, (provider,))
    made = (codec.artifact.path / MANIFEST_NAME).stat().st_mtime
    waiting = [each for each in jobs if job.force or not _is_done(each, made)]
    pooled = command == "encode" and codec.artifact.manifest.shape.layout == "ring" and not job.separate
    results = _pooled(codec, waiting) if pooled else (_one(codec, each, command) for each in waiting)
    errors: dict[Path, MimiExportError] = {}
    samples, begin = 0, time.perf_counter()
    with Steps() as steps:
        for number, (each, result) in enumerate(results, 1):
            steps.advance(f"{command}: {each.source.parent}", number, len(waiting))
            if isinstance(result, MimiExportError):
                errors[each.source] = result
            else:
                samples += result
    duration = samples / codec.geometry.sampling_rate
    speed = duration / max(time.perf_counter() - begin, 1e-9)
    numbers = {"done": len(waiting) - len(errors), "unchanged": len(jobs) - len(waiting), "failed": len(errors)}
    caution = codec.artifact.manifest.source.caution
    if json:
        files = {"input": str(job.source), "output": str(job.target), "variant": str(variant), "caution": caution}
        told = {str(path): str(error) for path, error in errors.items()}
        show_json({"command": command, **files, **numbers, "duration": duration, "speed": speed, "errors": told})
    else:
        counts = ", ".join(f"{count} {name}" for name, count in numbers.items())
        sound = f"{duration:.2f} s of sound, {speed:.1f} times real time"
        show_rows(str(job.target), [("weights", caution), ("files", counts), ("duration", sound)])
    for error in errors.values():
        note(f"failed: {error}")
    if errors:
        raise typer.Exit(next(iter(errors.values())).exit_code)


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
