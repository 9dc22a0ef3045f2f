"""Whether the whole-clip graphs of a directory give what batch PyTorch gives, written down beside them.

The record has the form of `report.json` (`contract.report`), one for each data type, so that what vouches for a
streaming variant and for these files reads alike. The clips have lengths that are no whole number of frames.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mimi_export import __version__
from mimi_export.contract.directory import load_batch
from mimi_export.contract.manifest import BATCH_REPORT, BatchManifest
from mimi_export.contract.progress import Progress
from mimi_export.contract.recipes import Budget
from mimi_export.contract.report import Report, VariantRecord
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ParityError
from mimi_export.media.signals import speech_like
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.parity.checks import check_budgets
from mimi_export.parity.clips import Clip
from mimi_export.parity.metrics import difference_of
from mimi_export.parity.reference import Reference
from mimi_export.parity.reports.json import agreement_record, check_record, clip_record
from mimi_export.parity.results import ClipNumbers, all_codes
from mimi_export.parity.ties import Agreement, judge_codes

logger = logging.getLogger(__name__)

CLIP_SECONDS = (11.05, 0.7)  # longer than the attention window of 10 s; and short
BUDGETS = {
    "fp32": (
        Budget("code_agreement_percent", 100.0, None, "they compute what PyTorch computes; only rounding differs"),
        Budget("code_tie_percent", None, 0.1, "rounding decides about one frame in 500"),
        Budget("decoder_snr_db", 110.0, None, "float32 sums in another order leave more than 115 dB"),
    ),
    "fp16": (Budget("decoder_snr_db", 60.0, None, "weights rounded to 11 bits leave 61 to 63 dB"),),
    "q8": (Budget("decoder_snr_db", 30.0, None, "8-bit products leave 34 dB, though a whole clip shares one range"),),
}


def check_batch(checkpoint: Checkpoint, directory: str | os.PathLike[str], progress: Progress = logger.info) -> None:
    """Measure every data type of what `export_batch` wrote from this checkpoint, write the report beside it, and insist
    on the budgets; `ParityError` says which one is missed.
    """
    manifest = load_batch(directory)
    rate = manifest.sampling_rate
    clips = [Clip(f"speech_like {s:g} s", samples=speech_like(s, 5, rate)) for s in CLIP_SECONDS]
    with Reference(checkpoint, [manifest.num_codebooks], progress) as reference:
        records = [_measure(manifest, Path(directory), dtype, clips, reference, progress) for dtype in manifest.dtypes]
    passed = all(record.passed for record in records)
    report = Report(f"mimi-export {__version__}", passed, (), tuple(records))
    (Path(directory) / BATCH_REPORT).write_text(report.to_text(), encoding="utf-8")
    if not passed:
        missed = (f"{record.name}: {check.line}" for record in records for check in record.checks if not check.passed)
        raise ParityError("; ".join(missed))


def _measure(
    manifest: BatchManifest, directory: Path, dtype: str, clips: list[Clip], reference: Reference, progress: Progress
) -> VariantRecord:
    """The record of one data type."""
    files = manifest.dtypes[dtype]
    encoder, decoder = (_graph(directory / files[kind]) for kind in GRAPH_KINDS)
    measured = []
    for clip in clips:
        progress(f"{dtype}: {clip.name}")
        truth = reference.clip(clip)
        (piece,) = truth.calls([truth.num_frames])
        codes = encoder(piece.samples[None, None, : truth.num_samples])
        agreement = Agreement()
        agreement.push(judge_codes(reference.quantizers, piece.latents, piece.codes, codes[0]))
        right = piece.audio[manifest.num_codebooks]
        decoded, heard = (difference_of(right, decoder(these)[0, 0]) for these in (piece.codes[None], codes))
        sizes = (truth.num_samples, truth.num_frames)
        measured.append(ClipNumbers(clip.name, False, *sizes, {"all": agreement}, {}, None, decoded, heard))
    checks = check_budgets(measured, BUDGETS[dtype])
    return VariantRecord(
        name=f"{manifest.name} {dtype}",
        directory=manifest.name,
        precision=dtype,
        layout="batch",
        frames_per_call=None,
        num_codebooks=manifest.num_codebooks,
        source=manifest.source,
        passed=all(check.passed for check in checks),
        checks=tuple(map(check_record, checks)),
        explanations=(),
        files={name: manifest.files[name] for name in files.values()},
        bitrate=reference.geometry.bitrate(manifest.num_codebooks),
        codes=agreement_record(all_codes(measured)),
        clips=tuple(clip_record(clip, manifest.sampling_rate) for clip in measured),
        tools={"mimi-export": __version__, "onnxruntime": ort.__version__},
    )


def _graph(path: Path) -> Callable[[np.ndarray[Any, Any]], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda data: session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(data)})[0]
