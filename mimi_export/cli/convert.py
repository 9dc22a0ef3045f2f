"""`convert fp16`, `convert int8` and `sensitivity`: variants of lower precision, and what rounding a weight costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mimi_export.cli.console import Steps, note, show_json, show_table
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import DEFAULT_VARIANT, Force, Json, Provider
from mimi_export.contract.precision import Fp16Options, Int8Options, Options

InputDir = Annotated[Path, typer.Argument(metavar="IN_DIR", help="A finished fp32 variant directory.")]
OutputDir = Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Directory to make.")]
Name = Annotated[str | None, typer.Option(help="The new variant's name [default: that of OUT_DIR].")]


def _option(name: str) -> Any:
    """The option for a field of `Int8Options`; those of `Fp16Options` are among them."""
    return typer.Option(f"--{name.replace('_', '-')}", **Int8Options.__dataclass_fields__[name].metadata)


KeepFloat = Annotated[list[str] | None, _option("keep_float")]
RoundCodebooks = Annotated[bool, _option("round_codebooks")]
Calibrate = Annotated[list[str] | None, _option("calibrate")]

group = typer.Typer(
    help="Make a variant of lower precision from a finished fp32 variant.", no_args_is_help=True, rich_markup_mode=None
)


@group.command("fp16", short_help="Store weights as float16; arithmetic stays float32.")
def convert_fp16(
    input_dir: InputDir,
    output_dir: OutputDir,
    keep_float: KeepFloat = None,
    name: Name = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Store weights as float16: half the size, the same inputs, outputs and float32 arithmetic.

    \b
      mimi-export convert fp16 artifacts/streaming-8cb artifacts/streaming-8cb-fp16
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    _convert(input_dir, output_dir, Fp16Options(tuple(keep_float or ())), name, force, json)


@group.command("int8", short_help="Multiply in 8-bit integers.")
def convert_int8(
    input_dir: InputDir,
    output_dir: OutputDir,
    keep_float: KeepFloat = None,
    round_codebooks: RoundCodebooks = False,
    calibrate: Calibrate = None,
    name: Name = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Multiply in 8-bit integers: a third of the size and faster; not exact.

    \b
      mimi-export convert int8 artifacts/streaming-8cb artifacts/streaming-8cb-int8
      mimi-export convert int8 IN OUT --calibrate interview.flac --keep-float 'decoder:*.projection'
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    options = Int8Options(tuple(keep_float or ()), round_codebooks, tuple(calibrate or ()))
    _convert(input_dir, output_dir, options, name, force, json)


def _convert(input_dir: Path, output_dir: Path, options: Options, name: str | None, force: bool, json: bool) -> None:
    """Convert and show the sizes."""
    from mimi_export.contract.directory import load_artifact

    with needs_extra("export", "mimi-export convert"):
        from mimi_export.export.convert import convert
    with Steps() as steps:
        done = convert(input_dir, output_dir, options, name=name, force=force, progress=steps.step)
    before, after = load_artifact(input_dir).manifest.files, done.manifest.files
    names = [file for file in sorted(after) if file.endswith(".onnx")]
    if json:
        show_json({
            "command": "convert",
            "path": str(output_dir),
            "name": done.manifest.name,
            "precision": done.manifest.precision,
            "files": {file: after[file].bytes for file in names},
            "weights": {
                kind: sum(form != "float32" for form in graph.forms.values()) for kind, graph in done.graphs.items()
            },
            "underflows": done.underflows,
        })  # fmt: skip
        return
    rows = [(file, _mebibytes(before[file].bytes), _mebibytes(after[file].bytes)) for file in names]
    show_table(f"{output_dir} is ready", ("graph", "MiB before", "MiB after"), rows)
    if done.underflows:
        note(f"{done.underflows} weights are too small for float16 and became zero")


def sensitivity(
    keep_float: KeepFloat = None,
    round_codebooks: RoundCodebooks = False,
    calibrate: Calibrate = None,
    variant: Annotated[Path, typer.Argument(metavar="DIR", help="A finished fp32 variant.")] = DEFAULT_VARIANT,
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Speech to measure with [default: generated].")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The reference [default: what the variant names].")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How much of the clip to use.")] = 12.0,
    provider: Provider = "cpu",
    json: Json = False,
) -> None:
    """Convert with all weights in 8 bits, then with one group at a time in float32.

    \b
      mimi-export sensitivity artifacts/streaming-8cb
      mimi-export sensitivity artifacts/streaming-8cb --clip speech.flac

    Shows what each group gains in dB and costs in MiB and milliseconds. Times are differences of medians of calls
    made in turn, and need a quiet machine.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    with needs_extra("export", "mimi-export sensitivity"):
        from mimi_export.model.checkpoint import load_checkpoint, load_source
        from mimi_export.parity.clips import clips_from_files, default_clips
        from mimi_export.parity.sensitivity import measure_sensitivity
    from mimi_export.contract.directory import load_artifact
    from mimi_export.runtime.session import provider_name

    provider_name(provider)  # refused before the model loads
    options = Int8Options(tuple(keep_float or ()), round_codebooks, tuple(calibrate or ()))
    artifact = load_artifact(variant)
    source = artifact.manifest.source
    with Steps() as steps:
        steps.step(f"loading {model or source.model}")
        checkpoint = load_checkpoint(model) if model else load_source(source.model, source.revision)
        rate = artifact.geometry.sampling_rate
        heard = clips_from_files([clip]) if clip else default_clips(rate, seconds, stress=False)
        rows = measure_sensitivity(
            artifact, checkpoint, heard[0], options, seconds=seconds, provider=provider, progress=steps.step
        )
    if json:
        show_json({"command": "sensitivity", "variant": str(variant), "rows": [row._asdict() for row in rows]})
        return
    columns = ("graph", "group", "dB", "dB gained", "MiB more", "ms more")
    cells = [(*row[:2], *(round(number, 2) for number in row[2:])) for row in rows]
    show_table("Sensitivity to 8 bits", columns, cells)


def _mebibytes(size: int) -> float:
    return round(size / 2**20, 2)
