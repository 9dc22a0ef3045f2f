"""Whether the whole-clip graphs of a directory give what batch PyTorch gives, written down beside them.

The record has the form of `report.json` (`parity.report_json`), one for each data type, so that what vouches for a
streaming variant and for these files reads alike. The clips have lengths that are no whole number of frames.
"""

from __future__ import annotations

import dataclasses
import json
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
from mimi_export.contract.recipes import Budget
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ParityError
from mimi_export.media.signals import speech_like
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.parity.clips import Clip
from mimi_export.parity.metrics import Comparison, Difference
from mimi_export.parity.reference import Reference
from mimi_export.parity.reports.json import FORMAT_VERSION, level
from mimi_export.parity.ties import Agreement, judge_codes

Progress = Callable[[str], None]
Json = dict[str, Any]
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


def check_batch(
    checkpoint: Checkpoint, directory: str | os.PathLike[str], progress: Progress = logger.info
) -> list[Json]:
    """Measure every data type of a directory, write the report into it, and insist on its budgets.

    Args:
        checkpoint: the model that the directory was exported from.
        directory: what `export_batch` wrote, or is about to.
        progress: told of each step.

    Raises:
        ParityError: a budget is missed; the report is there and says which.
    """
    manifest = load_batch(directory)
    rate = manifest.sampling_rate
    clips = [Clip(f"speech_like {s:g} s", samples=speech_like(s, 5, rate)) for s in CLIP_SECONDS]
    with Reference(checkpoint, [manifest.num_codebooks], progress) as reference:
        records = [_measure(manifest, Path(directory), dtype, clips, reference, progress) for dtype in manifest.dtypes]
    report = {
        "format_version": FORMAT_VERSION,
        "generator": f"mimi-export {__version__}",
        "passed": all(record["passed"] for record in records),
        "not_measured": [],
        "variants": records,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (Path(directory) / BATCH_REPORT).write_text(text, encoding="utf-8")
    missed = [f"{record['name']}: {check['line']}" for record in records for check in _missed(record)]
    if missed:
        raise ParityError("; ".join(missed))
    return records


def _measure(
    manifest: BatchManifest, directory: Path, dtype: str, clips: list[Clip], reference: Reference, progress: Progress
) -> Json:
    """The record of one data type."""
    files = manifest.dtypes[dtype]
    encoder, decoder = (_Graph(directory / files[kind]) for kind in GRAPH_KINDS)
    everything = Agreement()
    shown: list[Json] = []
    for clip in clips:
        progress(f"{dtype}: {clip.name}")
        truth = reference.clip(clip)
        (piece,) = truth.calls([truth.num_frames])
        samples = piece.samples[: truth.num_samples]
        codes = encoder(samples[None, None])
        agreement, decoded, heard = Agreement(), Comparison(), Comparison()
        agreement.push(judge_codes(reference.quantizers, piece.latents, piece.codes, codes[0]))
        everything.add(agreement)
        right = piece.audio[manifest.num_codebooks]
        decoded.push(right, decoder(piece.codes[None])[0, 0])
        heard.push(right, decoder(codes)[0, 0])
        shown.append(
            {
                "name": clip.name,
                "stress": False,
                "seconds": truth.num_samples / manifest.sampling_rate,
                "frames": truth.num_frames,
                "codes": {"all": _agreement(agreement)},
                "latents": None,
                "decoder": _difference(decoded.difference),
                "end_to_end": _difference(heard.difference),
                "decoder_calls": {},
                "drift": {},
            }
        )
    values = {
        "code_agreement_percent": 100 * everything.apart_from_ties,
        "code_tie_percent": 100 * everything.ties / everything.codes if everything.ties > 1 else 0.0,
        "decoder_snr_db": min(float(_level(clip["decoder"]["snr_db"])) for clip in shown),
    }
    checks = [_check(budget, values[budget.metric]) for budget in BUDGETS[dtype]]
    frame_rate = manifest.sampling_rate / manifest.frame_size
    bits = (reference.geometry.codebook_size - 1).bit_length()
    return {
        "name": f"{manifest.name} {dtype}",
        "directory": manifest.name,
        "precision": dtype,
        "layout": "batch",
        "frames_per_call": None,
        "num_codebooks": manifest.num_codebooks,
        "source": {"model": manifest.source.model, "revision": manifest.source.revision},
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "explanations": [],
        "files": {name: dataclasses.asdict(manifest.files[name]) for name in files.values()},
        "bitrate": frame_rate * bits * manifest.num_codebooks,
        "codes": _agreement(everything),
        "clips": shown,
        "tools": {"mimi-export": __version__, "onnxruntime": ort.__version__},
    }


def _missed(record: Json) -> list[Json]:
    return [check for check in record["checks"] if not check["passed"]]


class _Graph:
    """One graph as a function."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, data: np.ndarray[Any, Any]) -> Any:
        return self._session.run(None, {self._input: np.ascontiguousarray(data)})[0]


def _check(budget: Budget, got: float) -> Json:
    passed = budget.holds(got)
    line = f"{'ok' if passed else 'MISSED'}: {budget.metric} {got:.2f}, wanted {budget.wanted}"
    return {
        "metric": budget.metric, "got": level(got), "wanted": budget.wanted, "passed": passed, "where": "all clips",
        "reason": budget.reason, "line": line,
    }  # fmt: skip


def _agreement(agreement: Agreement) -> Json:
    return {
        "total": agreement.codes,
        "differ": agreement.differ,
        "ties": agreement.ties,
        "follow": agreement.follow,
        "equal_percent": level(100 * agreement.equal),
        "apart_from_ties_percent": level(100 * agreement.apart_from_ties),
        "per_codebook_percent": [level(100 * value) for value in agreement.per_codebook],
    }


def _difference(comparison: Difference) -> Json:
    return {
        "snr_db": level(comparison.snr_db),
        "cosine": comparison.cosine,
        "max_abs": level(comparison.max_abs),
    }


def _level(value: float | str) -> float:
    """Back from the report's words."""
    return {"exact": float("inf"), "lost": float("-inf")}[value] if isinstance(value, str) else value
