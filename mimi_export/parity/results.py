"""What parity finds out about one variant: plain data, filled by `measure`, judged by `checks`, shown by reports.

Decibels are floats that may be infinite (see `metrics`); `None` stands for what was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mimi_export.contract.decibels import decibels
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.report import Heard
from mimi_export.contract.report import NotMeasured as NotMeasured
from mimi_export.contract.spec import GraphKind
from mimi_export.parity.metrics import Array, Audio, AudioDifference, Difference
from mimi_export.parity.ties import Agreement

DRIFT_SECONDS = 10.0
METRIC_WORDS = {
    "code_agreement_percent": ("equal codes, ties apart", "%"),
    "code_tie_percent": ("ties", "%"),
    "latent_snr_db": ("latents SNR", "dB"),
    "decoder_snr_db": ("decoder SNR", "dB"),
    "end_to_end_snr_db": ("end-to-end SNR", "dB"),
    "state_snr_db": ("states SNR", "dB"),
    "codebook_agreement_percent": ("equal codes of the worst codebook", "%"),
    "search_agreement_percent": ("codes nearest to the graph's own latents", "%"),
    "file_faults": ("faults of the files", ""),
    "start_db": ("first calls", "dB"),
    "old_stream_db": ("old streams", "dB"),
    "rows_db": ("different rows", "dB"),
    "call_size_db": ("calls of every size", "dB"),
    "codebooks_db": ("fewer codebooks", "dB"),
    "level_db": ("loud, quiet and broken sound", "dB"),
    "structure_faults": ("nodes that are not those traced anew", ""),
    "weight_faults": ("weights that are not the checkpoint's", ""),
}


def number(value: float | None, digits: int = 2) -> str:
    """A measured number for people: `exact` for an infinite SNR, `—` for what was not measured."""
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "exact" if value > 0 else "-∞"
    return f"{value:.{digits}f}"


@dataclass(frozen=True)
class Check:
    """One budget and what was found; `where` is the clip or state that decided."""

    metric: str
    got: float
    wanted: str
    passed: bool
    where: str
    reason: str

    @property
    def got_text(self) -> str:
        """`got` in words with its unit, and as many digits as it takes to differ from a whole number."""
        unit = METRIC_WORDS[self.metric][1]
        if not unit:
            return f"{self.got:g}"
        for digits in range(2, 6):
            text = number(self.got, digits)
            if not math.isfinite(self.got) or float(text) == self.got or float(text) != round(self.got):
                break
        return f"{text} {unit}"

    @property
    def line(self) -> str:
        """Which, got and wanted, on one line."""
        verdict = "ok" if self.passed else "MISSED"
        return f"{verdict}: {METRIC_WORDS[self.metric][0]} {self.got_text}, wanted {self.wanted_text} ({self.where})"

    @property
    def wanted_text(self) -> str:
        """`wanted` with its unit."""
        return f"{self.wanted} {METRIC_WORDS[self.metric][1]}".rstrip()


@dataclass(frozen=True)
class Explanation:
    """The first place where a graph parts from the step functions: a stage (a tap's name), a state or the output."""

    kind: GraphKind
    place: str
    call: int
    frame: int
    snr_db: float
    cause: str

    @property
    def line(self) -> str:
        """One line for people."""
        value = "nothing in common" if self.snr_db < 0 else f"{self.snr_db:.1f} dB"
        return f"{self.kind}: parts at {self.place} in call {self.call} (frame {self.frame}), {value}; {self.cause}"


@dataclass
class Timeline:
    """Energies of signal and error per frame, and the verdict on each code (`ties`), `[K, frames]`.

    Rows of `energies`: signal and error of the latents, of the decoder's audio, of the audio end to end.
    """

    energies: dict[str, tuple[Array, Array]]
    verdict: npt.NDArray[np.uint8]

    def snr_db(self, what: str, start: int, stop: int) -> float:
        """SNR over a range of frames."""
        signal, error = self.energies[what]
        return decibels(float(signal[start:stop].sum()), float(error[start:stop].sum()))

    def drift(self, frames: int) -> dict[str, Drift]:
        """Between the first and the last so many frames; nothing for a clip that has not twice as many."""
        total = self.verdict.shape[1]
        if total < 2 * frames:
            return {}
        ends = ((0, frames), (total - frames, total))
        return {what: Drift(*(self.snr_db(what, *end) for end in ends)) for what in self.energies}


@dataclass(frozen=True)
class Drift:
    """SNR in the first and in the last 10 s of a clip of at least 20 s."""

    first_db: float
    last_db: float


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a clip to look at and to listen to, at most `EXCERPT_SECONDS`."""

    original: Audio
    reference: Audio
    result: Audio


@dataclass
class ClipNumbers:
    """What is measured on one clip, whole or as a stream.

    `codes`, `decoder_calls` and `latent_calls` (of latents that the graph gives) are by the number of frames in a call,
    as text (`1`, `mixed`, `all`). `searched` judges the codes by an exact search of the graph's own latents in its own
    codebooks.
    """

    name: str
    stress: bool
    num_samples: int
    num_frames: int
    codes: dict[str, Agreement]
    decoder_calls: dict[str, Difference]
    latents: Difference | None
    decoder: Difference
    end_to_end: Difference
    drift: dict[str, Drift] = field(default_factory=dict)
    searched: Agreement | None = None
    latent_calls: dict[str, Difference] = field(default_factory=dict)


def all_codes(clips: Iterable[ClipNumbers]) -> Agreement:
    """Codes of all clips and all ways to call, together."""
    return Agreement.total(agreement for clip in clips for agreement in clip.codes.values())


@dataclass(kw_only=True)
class ClipResult(ClipNumbers):
    """One clip through one streaming variant."""

    decoder: AudioDifference
    end_to_end: AudioDifference
    first_seconds: dict[str, Difference]
    timeline: Timeline
    excerpt: Excerpt


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one frame of one stream: median and 95th percentile."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Outcome:
    """What came of one of `situations`: the first place below its limit, or else the nearest to it, in dB."""

    metric: str
    where: str
    got_db: float
    limit_db: float

    @property
    def passed(self) -> bool:
        """Whether every place kept its limit."""
        return self.got_db >= self.limit_db


@dataclass
class VariantReport:
    """Everything measured on one variant.

    `states`: SNR of each state at the end of the first clip against the PyTorch step functions, in the order of
    the graph's states. `timing` is by graph, at one frame a call (or what the graph is fixed to). `faults` are lines
    by metric (`file_faults`, …), each beginning with the place. `skipped` says what was not looked at, `heard` what a
    listener would notice.
    """

    name: str
    directory: str
    manifest: Manifest
    clips: list[ClipResult] = field(default_factory=list)
    states: dict[GraphKind, dict[str, float]] = field(default_factory=dict)
    timing: dict[GraphKind, Timing] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)

    @property
    def codes(self) -> Agreement:
        """See `all_codes`."""
        return all_codes(self.clips)

    @property
    def bitrate(self) -> float:
        """Bits per second of the codes."""
        return self.manifest.geometry.bitrate(self.manifest.shape.num_codebooks)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio, encoding and decoding."""
        milliseconds = sum(timing.median_ms for timing in self.timing.values())
        return milliseconds * self.manifest.geometry.frame_rate / 1000

    @property
    def passed(self) -> bool:
        """Whether every budget is met."""
        return all(check.passed for check in self.checks)


@dataclass
class ParityRun:
    """All variants of one call of the command."""

    reports: list[VariantReport]
    not_measured: list[NotMeasured] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was measured and every budget is met."""
        return bool(self.reports) and not self.not_measured and all(report.passed for report in self.reports)

    @property
    def problems(self) -> list[str]:
        """What is wrong: missed budgets, the places to blame, and what could not be measured."""
        places = [f"{report.name}: {item.line}" for report in self.reports for item in report.explanations]
        unmeasured = [f"could not measure {item.directory}: {item.reason}" for item in self.not_measured]
        return [*self.missed, *places, *unmeasured]

    @property
    def missed(self) -> list[str]:
        """One line for each budget that is not met."""
        return [
            f"{report.name}: {check.line}" for report in self.reports for check in report.checks if not check.passed
        ]
