"""`parity`: measure variants against batch PyTorch, judge them by their budgets, and write reports.

Exit code 0: every budget is met. 1: one is missed, and the lines on stderr say which. 10: something could not be
measured (a directory, an audio file, the reference), whatever the rest says.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_export.cli.console import Steps, note, show_json, show_rows, show_table
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import Force, Json, Provider
from mimi_export.errors import ConfigError, MeasurementError, MimiExportError, OutputError, ParityError

if TYPE_CHECKING:
    from mimi_export.parity.depth import Depth
    from mimi_export.parity.results import ParityRun


def parity(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Variant directories.")],
    audio: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Audio to measure on, the most important first; may be repeated. "
            "By default generated speech-like sound and difficult signals.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model to compare with; by default the one each variant was made from."),
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Revision of --reference.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Directory for report.json, report.md, report.xml (JUnit) and report.html."),
    ] = None,
    configs: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the budgets are; ./configs.")] = None,
    calls: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Frames per call to try on the first clip, with commas; 1,3,mixed."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the files, the weights and one clip; says what it skips.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Everything that can be looked at.")] = False,
    listen: Annotated[
        bool, typer.Option("--listen", help="Say what a listener would notice; needs the extra of that name.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name the first place in a failing graph that differs from PyTorch.")
    ] = False,
    provider: Provider = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure variants against untouched batch PyTorch and check their budgets.

    \b
      mimi-export parity artifacts/streaming-8cb
      mimi-export parity artifacts/* --audio speech.flac --deep --report out
      mimi-export parity broken --explain

    Exit code 1: a budget is missed. Exit code 10: something could not be measured.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    with needs_extra("export", "parity"):
        from mimi_export.parity.clips import clips_from_files
        from mimi_export.parity.reports import FILES, tables, write_reports
        from mimi_export.parity.reports import json as report_json
        from mimi_export.parity.run import check_parity
    from mimi_export.contract.files import atomic_directory
    from mimi_export.contract.recipes import find_configs, load_variants
    from mimi_export.runtime.session import provider_name

    provider_name(provider)  # refused before a model loads
    depth = _depth(quick, deep, listen)
    ways = None if calls is None else _ways(calls)
    try:
        variants = load_variants(find_configs(configs))
    except ConfigError:
        if configs is not None:
            raise
        variants = {}  # an installation without configurations: budgets by precision
    with ExitStack() as stack:
        folder = stack.enter_context(atomic_directory(report, force, FILES[0])) if report is not None else None
        steps = stack.enter_context(Steps())
        try:
            run = check_parity(
                directories,
                clips_from_files(audio) if audio else None,
                model=reference,
                revision=revision,
                frames_per_call=ways,
                depth=depth,
                variants=variants,
                explain_failures=explain,
                provider=provider,
                progress=steps.step,
            )
        except OutputError:
            raise
        except MimiExportError as error:
            raise MeasurementError(f"could not measure: {error}") from error
        if folder is not None:
            steps.step(f"writing {report}")
            write_reports(run, folder)
    if left := tables.skipped(run):
        note(f"not looked at: {'; '.join(left)}")
    if json:
        show_json(report_json.to_report(run).to_dict())
    else:
        _show(run)
    if run.not_measured:
        raise MeasurementError(
            "; ".join(f"could not measure {item.directory}: {item.reason}" for item in run.not_measured)
        )
    if not run.passed:
        raise ParityError(
            "; ".join([*run.missed, *(item.line for report in run.reports for item in report.explanations)])
        )


def _depth(quick: bool, deep: bool, listen: bool) -> Depth:
    """What the options ask for; a listener's packages are imported now, before minutes of work."""
    from mimi_export.parity.depth import DEEP, DEFAULT, QUICK
    from mimi_export.parity.listen import PACKAGES

    if quick and deep:
        raise typer.BadParameter("choose one of --quick and --deep")
    depth = QUICK if quick else DEEP if deep else DEFAULT
    if listen or deep:
        with needs_extra("listen", "parity --deep" if deep else "parity --listen"):
            for package in PACKAGES:
                import_module(package)
    return replace(depth, listen=listen or deep)


def _ways(calls: str) -> list[int | str]:
    words = [word.strip() for word in calls.split(",")]
    for word in words:
        if word != "mixed" and not (word.isdecimal() and 1 <= int(word) <= 32):
            raise typer.BadParameter(
                f"{word!r}: expected numbers from 1 to 32 and 'mixed', with commas", param_hint="--calls"
            )
    return [word if word == "mixed" else int(word) for word in words]


def _show(run: ParityRun) -> None:
    from mimi_export.parity.reports import tables

    if not run.reports:
        return
    for line in tables.cautions(run):
        show_rows(line, [])
    columns, rows = tables.quality(run).only(0, 1, 2, 4, 5, 7, 8)
    _, times = tables.cost(run).only(1, 3, 5)
    rows = [row + cells for row, cells in zip(rows, times, strict=True)]
    show_table("Parity with batch PyTorch", [*columns, "enc ms", "dec ms", "rtf"], rows)
    for table in (tables.latents(run), tables.published(run)):
        if table.rows:
            show_table(table.title, table.columns, table.rows)
    checks = [
        (report.name, "ok" if check.passed else "MISSED", check.line.partition(": ")[2])
        for report in run.reports
        for check in report.checks
    ]
    show_table("Budgets", ("variant", "", "check"), checks)
    if heard := tables.listened(run).rows:
        show_table("What a listener would notice", tables.listened(run).columns, heard)
