"""`report.json`: everything that parity measured, for machines, as the records of `contract.report`.

What the keys of a variant and of a clip stand for:

    checks            every budget, and what was found without one: faults of the files, situations, states
    codes             all clips and ways to call; of a clip by the number of frames in a call
    timing            milliseconds of one frame of one stream, and real_time_factor of both graphs
    states            by graph, by state: SNR at the end of the first clip
    published         the first 3 s beside what the public models' card states (`card_*`)
    clips             latents and decoder from the reference's codes, end_to_end from the variant's own
    latent_calls      of latents that the graph gives, by the number of frames in a call
    drift             first_db and last_db of the first and the last 10 s

Audio differences have `log_mel_db` and `multi_scale`, too (`mimi_export.parity.spectra`).
"""

from __future__ import annotations

import math
from pathlib import Path

from mimi_export import __version__
from mimi_export.contract import report as records
from mimi_export.contract.report import Report, VariantRecord, level
from mimi_export.parity.metrics import PUBLISHED_SECONDS, AudioDifference, Difference
from mimi_export.parity.results import Check, ClipNumbers, ParityRun, VariantReport
from mimi_export.parity.ties import Agreement

CARD_STREAMING = Difference(31.9, 0.9997, 0.16)
CARD_BATCH_DB = 128.0


def to_report(run: ParityRun) -> Report:
    """The records of `report.json`."""
    return Report(f"mimi-export {__version__}", run.passed, tuple(run.not_measured), tuple(map(_variant, run.reports)))


def to_text(run: ParityRun) -> str:
    """`report.json` as text."""
    return to_report(run).to_text()


def _variant(report: VariantReport) -> VariantRecord:
    manifest, first = report.manifest, report.clips[0]
    rate = manifest.geometry.sampling_rate
    times = {kind: records.FrameTime(level(t.median_ms), level(t.p95_ms)) for kind, t in report.timing.items()}
    return VariantRecord(
        name=report.name,
        directory=Path(report.directory).name,
        precision=manifest.precision,
        layout=manifest.shape.layout,
        frames_per_call=manifest.shape.frames_per_call,
        num_codebooks=manifest.shape.num_codebooks,
        source=manifest.source,
        passed=report.passed,
        checks=tuple(map(check_record, report.checks)),
        explanations=tuple(
            records.Explanation(e.kind, e.place, e.call, e.frame, level(e.snr_db), e.cause, e.line)
            for e in report.explanations
        ),
        files=dict(sorted(manifest.files.items())),
        bitrate=report.bitrate,
        codes=agreement_record(report.codes),
        timing=records.Timing(times["encoder"], times.get("decoder"), level(report.real_time_factor)),
        states={kind: {name: level(db) for name, db in states.items()} for kind, states in report.states.items()},
        published=None
        if "decoder" not in times
        else records.Published(
            seconds=min(PUBLISHED_SECONDS, first.num_samples / rate),
            decoder=difference_record(first.first_seconds["decoder"]),
            end_to_end=difference_record(first.first_seconds["end_to_end"]),
            card_streaming=difference_record(CARD_STREAMING),
            card_batch=records.Difference(CARD_BATCH_DB, None, None),
        ),
        clips=tuple(clip_record(clip, rate) for clip in report.clips),
        tools=dict(sorted(report.tools.items())),
        skipped=tuple(report.skipped),
        heard=tuple(report.heard),
    )


def clip_record(clip: ClipNumbers, sampling_rate: int) -> records.Clip:
    """One clip."""
    return records.Clip(
        name=clip.name,
        stress=clip.stress,
        seconds=clip.num_samples / sampling_rate,
        frames=clip.num_frames,
        codes={way: agreement_record(agreement) for way, agreement in clip.codes.items()},
        latents=None if clip.latents is None else difference_record(clip.latents),
        decoder=difference_record(clip.decoder),
        end_to_end=difference_record(clip.end_to_end),
        decoder_calls={way: difference_record(difference) for way, difference in clip.decoder_calls.items()},
        drift={what: records.Drift(level(d.first_db), level(d.last_db)) for what, d in clip.drift.items()},
        latent_calls={way: difference_record(d) for way, d in clip.latent_calls.items()} or None,
    )


def check_record(check: Check) -> records.Check:
    """One budget."""
    got = level(check.got)
    return records.Check(check.metric, got, check.wanted, check.passed, check.where, check.reason, check.line)


def difference_record(difference: Difference) -> records.Difference:
    """A comparison."""
    return records.Difference(
        snr_db=level(difference.snr_db),
        cosine=None if math.isnan(difference.cosine) else difference.cosine,
        max_abs="lost" if math.isinf(difference.max_abs) else level(difference.max_abs),
        log_mel_db=level(difference.log_mel_db) if isinstance(difference, AudioDifference) else None,
        multi_scale=level(difference.multi_scale) if isinstance(difference, AudioDifference) else None,
    )


def agreement_record(agreement: Agreement) -> records.Agreement:
    """A count of equal codes."""
    return records.Agreement(
        total=agreement.codes,
        differ=agreement.differ,
        ties=agreement.ties,
        follow=agreement.follow,
        equal_percent=level(100 * agreement.equal),
        apart_from_ties_percent=level(100 * agreement.apart_from_ties),
        per_codebook_percent=tuple(level(100 * value) for value in agreement.per_codebook),
    )
