"""The model card (`README.md` of a repository): the prose of `card.md` around numbers that come from files.

`card.md` holds named sections with `$words`; this module chooses sections and says what the words are. The programs
below `snippets` stand in it as they are. Equal manifests and reports give an equal card, byte for byte, so publishing
again changes nothing. Sections are chosen here, so the standard library's template is enough, without jinja2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from mimi_export import __version__
from mimi_export.contract.manifest import DEMO, Manifest
from mimi_export.contract.records import plain
from mimi_export.contract.report import FORMAT_VERSION, VariantRecord
from mimi_export.errors import ArtifactError
from mimi_export.hub import tables
from mimi_export.hub.subjects import Subject

KYUTAI = "kyutai/mimi"
LICENSES = {KYUTAI: "cc-by-4.0", DEMO: "cc-by-sa-3.0"}
TAGS = ("onnx", "onnxruntime", "mimi", "audio", "speech", "codec", "neural-audio-codec", "streaming")
MIMI_FRAME = (24_000, 1920)  # Hz and samples of a frame, which the programs without this package take for granted

FILES = resources.files("mimi_export.hub")


def model_card(subjects: Sequence[Subject], repo_id: str | None = None, base_model: str | None = None) -> str:
    """The card for these directories.

    Args:
        subjects: what is published; at least one.
        repo_id: where, for the download commands; a placeholder by default.
        base_model: the Hub id of the original, where the manifests only know a local directory.

    Raises:
        ArtifactError: the directories were made from different models.
    """
    models = sorted({subject.model for subject in subjects})
    if len(models) > 1:
        raise ArtifactError(
            f"the directories come from different models ({', '.join(models)}); publish them separately"
        )
    base = base_model or (models[0] if "/" in models[0] else None)
    return "\n\n".join(_parts(subjects, repo_id or "USER/NAME", base, models[0])) + "\n"


def front_matter(base_model: str | None, whole_clips: bool, license_id: str | None) -> str:
    """The metadata block that the Hub reads."""
    fields: dict[str, Any] = {"library_name": "transformers.js" if whole_clips else "onnx"}
    fields["license"] = license_id or "other"
    if license_id is None:
        fields["license_name"] = "license-of-the-original-weights"
    if base_model is not None:
        fields |= {"base_model": base_model, "base_model_relation": "quantized"}
    fields |= {"pipeline_tag": "audio-to-audio", "tags": list(TAGS)}
    lines = []
    for key, value in fields.items():
        lines += [f"{key}:", *(f"- {item}" for item in value)] if isinstance(value, list) else [f"{key}: {value}"]
    return "\n".join(["---", *lines, "---"])


def report_text(subjects: Sequence[Subject]) -> str:
    """The parity records behind the card, as published beside it."""
    records = [plain(record) for subject in subjects for record in subject.reports]
    return json.dumps({"format_version": FORMAT_VERSION, "variants": records}, indent=2, ensure_ascii=False) + "\n"


def _parts(subjects: Sequence[Subject], repository: str, base: str | None, model: str) -> Iterator[str]:
    manifests = [subject.manifest for subject in subjects if subject.manifest is not None]
    whole = next(((subject.batch, subject.reports) for subject in subjects if subject.batch is not None), None)
    records = [record for subject in subjects if subject.manifest is not None for record in subject.reports]
    yield front_matter(base, whole is not None, LICENSES.get(base or model))
    yield "# Mimi as streaming ONNX models"
    if model.startswith("synthetic"):
        yield _prose("made_up")
    if model == DEMO:
        yield _prose("small")
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"`{model}`"
    yield _prose("lead", origin=origin, version=__version__)
    if manifests:
        geometry = manifests[0].geometry
        yield _prose(
            "stream",
            kilohertz=f"{geometry.sampling_rate / 1000:g}",
            frame_size=geometry.frame_size,
            milliseconds=f"{1000 / geometry.frame_rate:g}",
            frame_rate=f"{geometry.frame_rate:g}",
            bits=geometry.bits_per_code,
        )
        yield _prose("variants", table=tables.variants(manifests), choice="\n".join(_choice(manifests)))
        yield from _use(manifests, repository)
    if whole is not None:
        batch, reports = whole
        yield _prose(
            "whole_clips",
            table=tables.whole_clips(batch, reports),
            num_codebooks=batch.num_codebooks,
            seconds=" and ".join(f"{clip.seconds:g} s" for clip in reports[0].clips),
            repository=repository,
            dtype=next(iter(batch.dtypes)),
        )
    yield from _quality(records)
    yield _prose("checks", table=tables.checks([*records, *(whole[1] if whole is not None else ())]))
    timed = [record for record in records if record.timing is not None]
    if timed:
        yield _prose("speed", table=tables.speed(timed), tools=_versions(timed[0].tools))
    if manifests:
        yield _differences(manifests[0], records)
        yield _prose("contract")
        yield from _states(manifests)
    yield from _attribution(base, subjects)


def _choice(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Advice on what the variants differ in, as items of a list."""
    counts = sorted({manifest.shape.num_codebooks for manifest in manifests} - {0})
    if len(counts) > 1:
        rates = ", ".join(f"{count} ({manifests[0].geometry.bitrate(count) / 1000:g} kbit/s)" for count in counts)
        yield _prose("codebooks", rates=rates, least=counts[0])
    there = {manifest.precision.partition("-")[0] for manifest in manifests}
    there |= {manifest.shape.layout for manifest in manifests}
    yield from (_prose(name) for name in ("fp32", "fp16", "int8", "window", "ring") if name in there)


def _use(manifests: Sequence[Manifest], repository: str) -> Iterator[str]:
    """The programs: one of latents, and those for the first variant of the window layout, which pass any number of
    frames a call and hand on to the decoder what the encoder gives first.
    """
    latents = next((manifest for manifest in manifests if manifest.shape.head != "codes"), None)
    if latents is not None:
        yield _prose("latents", name=latents.name)
    fitting = (m for m in manifests if m.shape.layout == "window" and m.shape.start == "codes")
    manifest = next(fitting, None)
    if manifest is None:
        return
    yield _prose("use", repository=repository, name=manifest.name)
    if (manifest.geometry.sampling_rate, manifest.geometry.frame_size) == MIMI_FRAME:
        yield _prose("use_bare", name=manifest.name)


def _quality(records: Sequence[VariantRecord]) -> Iterator[str]:
    if not records:
        yield "## Quality"
        return
    first = records[0].clips[0]
    yield _prose(
        "quality",
        clips=", ".join(f"`{clip.name}` ({clip.seconds:.3g} s)" for clip in records[0].clips),
        calls=", ".join(first.codes),
        first=first.name,
        seconds=f"{first.seconds:.3g}",
        table=tables.quality(records),
    )
    if table := tables.latents(records):
        yield _prose("latents_quality", table=table)
    seconds = [record.published.seconds for record in records if record.published is not None]
    if seconds:
        yield _prose("published", seconds=f"{seconds[0]:g}", table=tables.published(records))


def _differences(manifest: Manifest, records: Sequence[VariantRecord]) -> str:
    geometry = manifest.geometry
    token = 2 * geometry.num_hidden_layers * geometry.num_key_value_heads * geometry.head_dim * 4
    rate = geometry.frame_rate * geometry.tokens_per_frame
    kept = geometry.sliding_window - 1
    card = next((record.published.card_streaming for record in records if record.published is not None), None)
    claim = f" {_prose('claim', snr=tables.level(card.snr_db, 1))}" if card else ""
    return _prose(
        "differences",
        claim=claim,
        window=geometry.sliding_window,
        window_seconds=f"{geometry.sliding_window / rate:g}",
        kept=kept,
        kept_mib=f"{kept * token / tables.MIB:.2g}",
        hour_mib=f"{3600 * rate * token / tables.MIB:.0f}",
    )


def _states(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The tables of states, one for each contract among the variants."""
    contracts: dict[Any, Manifest] = {}
    for manifest in manifests:
        shape = manifest.shape
        contracts.setdefault((shape.layout, shape.frames_per_call, shape.head, shape.start), manifest)
    for manifest in contracts.values():
        layout, frames, count = manifest.shape.layout, manifest.shape.frames_per_call, manifest.shape.num_codebooks
        calls = "any number of frames" if frames is None else f"{frames} frame(s)"
        for kind, spec in manifest.specs.items():
            table = tables.states(spec)
            yield _prose("states", kind=kind, layout=layout, calls=calls, num_codebooks=count, table=table)


def _attribution(base: str | None, subjects: Sequence[Subject]) -> Iterator[str]:
    tools: dict[str, str] = {}
    for subject in subjects:
        tools |= dict(subject.made.tools)
    source = subjects[0].made.source
    revision = f" at revision `{source.revision}`" if source.revision else ""
    model = subjects[0].model
    name = "kyutai" if base == KYUTAI else "other_model" if base else "own" if model == DEMO else "other_source"
    yield _prose(name, base=base, model=model, revision=revision)
    yield _prose("made_with", tools=_versions(tools))


def _versions(tools: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))


@cache
def _sections() -> dict[str, Template]:
    text = (FILES / "card.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"(?m)^<!-- (\w+) -->$", text)
    return {name: Template(part.strip()) for name, part in zip(parts[::2], parts[1::2], strict=True)}


@cache
def _programs() -> dict[str, str]:
    """The text of every program by the word of `card.md` that stands for it: `stream_py` for `stream.py`."""
    files = (file for file in (FILES / "snippets").iterdir() if file.is_file())
    return {file.name.replace(".", "_"): file.read_text(encoding="utf-8").strip() for file in files}


def _prose(section: str, **words: object) -> str:
    return _sections()[section].substitute(_programs(), **words)
