"""What a `report.json` of parity says, as records: written by `parity`, read by `hub`.

A level in dB is a number, or one of two words, because JSON has no infinity: `exact` where there is no error at all
(+∞; two silences, too), `lost` where nothing of the signal is left to compare (-∞: the reference is silent and the
result is not, or the result holds NaN). `None` stands for what was not measured. Other numbers follow the same rule.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mimi_export.contract.manifest import FileEntry, Source
from mimi_export.contract.network import GraphKind
from mimi_export.contract.records import OPTIONAL, Reader, plain
from mimi_export.errors import ArtifactError

FORMAT_VERSION = 1
REPORT_NAME = "report.json"

Level = float | Literal["exact", "lost"] | None


def level(value: float | None) -> Level:
    """A number as a report writes it."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "exact" if value > 0 else "lost"
    return round(float(value), 9)


@dataclass(frozen=True)
class Check:
    """One budget, what was found, and where; `line` says it for people."""

    metric: str
    got: Level
    wanted: str
    passed: bool
    where: str
    reason: str
    line: str


@dataclass(frozen=True)
class Explanation:
    """The first place where a graph parts from the step functions."""

    graph: GraphKind
    place: str
    call: int
    frame: int
    snr_db: Level
    cause: str
    line: str


@dataclass(frozen=True)
class Agreement:
    """Codes beside the reference's; `follow` are those after a tie of the same frame."""

    total: int
    differ: int
    ties: int
    follow: int
    equal_percent: Level
    apart_from_ties_percent: Level
    per_codebook_percent: tuple[Level, ...]


@dataclass(frozen=True)
class Difference:
    """A signal beside the reference's; the last two are for audio."""

    snr_db: Level
    cosine: float | None
    max_abs: Level
    log_mel_db: Level = field(default=None, metadata=OPTIONAL)
    multi_scale: Level = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Drift:
    """SNR in the first and in the last 10 s of a clip."""

    first_db: Level
    last_db: Level


@dataclass(frozen=True)
class Clip:
    """One clip through one variant; `codes` and the `…_calls` are by the number of frames in a call."""

    name: str
    stress: bool
    seconds: float
    frames: int
    codes: Mapping[str, Agreement]
    latents: Difference | None
    decoder: Difference
    end_to_end: Difference
    decoder_calls: Mapping[str, Difference]
    drift: Mapping[str, Drift]
    latent_calls: Mapping[str, Difference] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Heard:
    """A listener's measures of a sound beside another one, and what they mean in words."""

    what: str
    estoi: float
    visqol: float
    zimtohrli: float
    words: str


@dataclass(frozen=True)
class FrameTime:
    """Milliseconds for one frame of one stream."""

    median_ms: Level
    p95_ms: Level


@dataclass(frozen=True)
class Timing:
    """Time of both graphs, and seconds of work for a second of audio."""

    encoder: FrameTime
    decoder: FrameTime | None
    real_time_factor: Level


@dataclass(frozen=True)
class Published:
    """The first seconds beside what the public models' card states (`card_*`)."""

    seconds: float
    decoder: Difference
    end_to_end: Difference
    card_streaming: Difference
    card_batch: Difference


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """One variant, or one data type of a whole-clip directory (which has no timing, states and published row).

    `files` are exactly those that were measured.
    """

    name: str
    directory: str
    precision: str
    layout: Literal["window", "ring", "batch"]
    frames_per_call: int | None
    num_codebooks: int
    source: Source
    passed: bool
    checks: tuple[Check, ...]
    explanations: tuple[Explanation, ...]
    files: Mapping[str, FileEntry]
    bitrate: float
    codes: Agreement
    timing: Timing | None = field(default=None, metadata=OPTIONAL)
    states: Mapping[GraphKind, Mapping[str, Level]] | None = field(default=None, metadata=OPTIONAL)
    published: Published | None = field(default=None, metadata=OPTIONAL)
    clips: tuple[Clip, ...]
    tools: Mapping[str, str]
    skipped: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    heard: tuple[Heard, ...] = field(default=(), metadata=OPTIONAL)


@dataclass(frozen=True)
class NotMeasured:
    """A variant directory that could not be measured, and why."""

    directory: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The content of `report.json`; `passed` only if every variant was measured and meets every budget."""

    generator: str
    passed: bool
    not_measured: tuple[NotMeasured, ...]
    variants: tuple[VariantRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format_version": FORMAT_VERSION, **plain(self)}

    def to_text(self) -> str:
        """The file's text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report; `path` may be the directory that holds it. Keys that a newer program added are passed over.

    Raises:
        ArtifactError: unreadable, no report, or one of another version.
    """
    path = Path(path) / REPORT_NAME if Path(path).is_dir() else Path(path)
    reader = Reader(path, ArtifactError, "; measure with `mimi-export parity --report`", newer=True)
    content = reader.version(reader.json(), FORMAT_VERSION, "parity report")
    return reader.record(Report, content)
