"""`report.json`: everything that parity measured, for machines.

`format_version` is 1; a key that goes or changes its meaning raises it, a new key does not. Content:

    format_version, generator            1, `mimi-export <version>`
    passed                               true only if every variant was measured and meets every budget
    not_measured                         list of {directory, reason}
    variants                             list, in the order asked for, of:
      name, directory, precision, layout, frames_per_call, num_codebooks, source {model, revision}
      passed, checks                     list of {metric, got, wanted, passed, where, reason, line}
      explanations                       list of {graph, place, call, frame, snr_db, cause, line}
      files                              by name {bytes, sha256}: exactly what was measured
      bitrate                            bit/s of the codes
      codes                              all clips and ways to call: {total, differ, ties, follow, equal_percent,
                                         apart_from_ties_percent, per_codebook_percent}
      timing                             by graph {median_ms, p95_ms} of a frame, and real_time_factor of both
      states                             by graph, by state: SNR at the end of the first clip
      published                          the first 3 s: {seconds, decoder, end_to_end, card_streaming, card_batch}, each
                                         {snr_db, cosine, max_abs}; `card_*` is what the public models' card states
      clips                              list of {name, stress, seconds, frames, codes (by frames per call),
                                         latents, decoder, end_to_end, decoder_calls, drift {… {first_db, last_db}}}
      tools                              versions and machine

A level in dB is a number, or one of two words, because JSON has no infinity: `"exact"` where there is no error at all
(+∞; two silences, too), `"lost"` where nothing of the signal is left to compare (-∞: the reference is silent and the
result is not, or the result holds NaN). `null` stands for what was not measured. Other numbers follow the same rule.
Audio differences have `log_mel_db` and `multi_scale`, too (`mimi_export.parity.spectra`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mimi_export import __version__
from mimi_export.parity.metrics import PUBLISHED_SECONDS, AudioDifference, Difference
from mimi_export.parity.results import Check, ClipNumbers, ParityRun, VariantReport
from mimi_export.parity.ties import Agreement

FORMAT_VERSION = 1
CARD_STREAMING = Difference(31.9, 0.9997, 0.16)
CARD_BATCH_DB = 128.0

Json = dict[str, Any]


def to_dict(run: ParityRun) -> Json:
    """The content of `report.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "generator": f"mimi-export {__version__}",
        "passed": run.passed,
        "not_measured": [{"directory": item.directory, "reason": item.reason} for item in run.not_measured],
        "variants": [_variant(report) for report in run.reports],
    }


def to_text(run: ParityRun) -> str:
    """`report.json` as text."""
    return json.dumps(to_dict(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def level(value: float | None) -> float | str | None:
    """A number as the schema writes it."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "exact" if value > 0 else "lost"
    return round(float(value), 9)


def _variant(report: VariantReport) -> Json:
    manifest, first = report.manifest, report.clips[0]
    return {
        "name": report.name,
        "directory": Path(report.directory).name,
        "precision": manifest.precision,
        "layout": manifest.shape.layout,
        "frames_per_call": manifest.shape.frames_per_call,
        "num_codebooks": manifest.shape.num_codebooks,
        "source": {"model": manifest.source.model, "revision": manifest.source.revision},
        "passed": report.passed,
        "checks": [check_record(check) for check in report.checks],
        "explanations": [
            {
                "graph": item.kind,
                "place": item.place,
                "call": item.call,
                "frame": item.frame,
                "snr_db": level(item.snr_db),
                "cause": item.cause,
                "line": item.line,
            }
            for item in report.explanations
        ],
        "files": {
            name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in sorted(manifest.files.items())
        },
        "bitrate": report.bitrate,
        "codes": agreement_record(report.codes),
        "timing": {
            **{
                kind: {"median_ms": level(timing.median_ms), "p95_ms": level(timing.p95_ms)}
                for kind, timing in report.timing.items()
            },
            "real_time_factor": level(report.real_time_factor),
        },
        "states": {kind: {name: level(v) for name, v in states.items()} for kind, states in report.states.items()},
        "published": {
            "seconds": min(PUBLISHED_SECONDS, first.num_samples / manifest.geometry.sampling_rate),
            **{what: difference_record(difference) for what, difference in first.first_seconds.items()},
            "card_streaming": difference_record(CARD_STREAMING),
            "card_batch": {"snr_db": CARD_BATCH_DB, "cosine": None, "max_abs": None},
        },
        "clips": [clip_record(clip, manifest.geometry.sampling_rate) for clip in report.clips],
        "tools": dict(sorted(report.tools.items())),
    }


def clip_record(clip: ClipNumbers, sampling_rate: int) -> Json:
    """One clip."""
    return {
        "name": clip.name,
        "stress": clip.stress,
        "seconds": clip.num_samples / sampling_rate,
        "frames": clip.num_frames,
        "codes": {way: agreement_record(agreement) for way, agreement in clip.codes.items()},
        "latents": None if clip.latents is None else difference_record(clip.latents),
        "decoder": difference_record(clip.decoder),
        "end_to_end": difference_record(clip.end_to_end),
        "decoder_calls": {way: difference_record(difference) for way, difference in clip.decoder_calls.items()},
        "drift": {
            what: {"first_db": level(drift.first_db), "last_db": level(drift.last_db)}
            for what, drift in clip.drift.items()
        },
    }


def check_record(check: Check) -> Json:
    """One budget."""
    return {
        "metric": check.metric,
        "got": level(check.got),
        "wanted": check.wanted,
        "passed": check.passed,
        "where": check.where,
        "reason": check.reason,
        "line": check.line,
    }


def difference_record(difference: Difference) -> Json:
    """A comparison."""
    found = {
        "snr_db": level(difference.snr_db),
        "cosine": None if math.isnan(difference.cosine) else difference.cosine,
        "max_abs": level(difference.max_abs) if math.isfinite(difference.max_abs) else "lost",
    }
    if isinstance(difference, AudioDifference):
        found |= {"log_mel_db": level(difference.log_mel_db), "multi_scale": level(difference.multi_scale)}
    return found


def agreement_record(agreement: Agreement) -> Json:
    """A count of equal codes."""
    return {
        "total": agreement.codes,
        "differ": agreement.differ,
        "ties": agreement.ties,
        "follow": agreement.follow,
        "equal_percent": level(100 * agreement.equal),
        "apart_from_ties_percent": level(100 * agreement.apart_from_ties),
        "per_codebook_percent": [level(100 * value) for value in agreement.per_codebook],
    }
