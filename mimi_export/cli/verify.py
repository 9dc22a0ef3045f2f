"""`verify`: is a downloaded variant whole, and does it compute here what it computed where it was made?

Needs the base install only: no PyTorch and no onnx. Exit code 0: all is well. 1: the golden clip does not come out as
it should. 5: the directory is no variant, incomplete, changed, or does not have the contract's inputs and outputs.
With `--json`: `command`, `path`, `passed`, `files`, `frames`, `codes_equal_percent`, `codes_least_percent`, `snr_db`
of the audio and `latents_snr_db` (a number, or `"exact"`; null, as for the codes, where the variant does not give it),
`snr_least_db`, `recorded_from` (the fp32 variant, or null), `onnxruntime`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows
from mimi_export.cli.options import Json, Provider
from mimi_export.errors import ParityError


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Variant directory.")],
    provider: Provider = "cpu",
    json: Json = False,
) -> None:
    """Check a variant on this machine: hashes, inputs and outputs, state shapes, and a golden clip.

    \b
      mimi-export verify streaming-8cb

    Run it after downloading. It needs no PyTorch.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    import onnxruntime

    from mimi_export.contract.directory import load_artifact
    from mimi_export.runtime.golden import level, replay_golden

    def number(value: float | None) -> float | str | None:
        return value if value is None or math.isfinite(value) else level(value)

    with Steps() as steps:
        steps.step("hashing the files")
        artifact = load_artifact(directory, verify_hashes=True)
        steps.step("replaying the golden clip")
        result = replay_golden(artifact, provider)
    if json:
        show_json({
            "command": "verify",
            "path": str(directory),
            "passed": result.passed,
            "files": len(artifact.manifest.files),
            "frames": result.frames,
            "codes_equal_percent": None if result.codes_equal is None else 100 * result.codes_equal,
            "codes_least_percent": 100 * result.codes_least,
            "snr_db": number(result.snr_db),
            "latents_snr_db": number(result.latents_db),
            "snr_least_db": result.snr_least,
            "recorded_from": result.recorded_from,
            "onnxruntime": onnxruntime.__version__,
        })  # fmt: skip
    else:
        graphs = f"inputs, outputs and state shapes as the contract says, onnxruntime {onnxruntime.__version__}"
        rows = [("files", f"{len(artifact.manifest.files)}, all with the SHA-256 of the manifest"), ("graphs", graphs)]
        if result.codes_equal is not None:
            equal, least = f"{100 * result.codes_equal:.2f} %", f"{100 * result.codes_least:g} %"
            rows.append(("codes", f"{equal} equal, at least {least} wanted"))
        for what, found in (("latents", result.latents_db), ("audio", result.snr_db)):
            if found is not None:
                rows.append((what, f"{level(found)}, at least {result.snr_least:g} dB wanted"))
        show_rows(f"{artifact.manifest.name}: {'as it was made' if result.passed else 'NOT as it should be'}", rows)
    if result.recorded_from is None and artifact.manifest.precision != "fp32":
        note(
            "the golden clip is of an older program, from this variant's own graphs: convert it again for a real check"
        )
    if not result.passed:
        raise ParityError(f"{directory} {result.missed(artifact.manifest)}")
