"""All four forms of a report, written into one directory."""

from __future__ import annotations

from pathlib import Path

from mimi_export.parity import junit, report_html, report_json, report_md
from mimi_export.parity.results import ParityRun

FILES = ("report.json", "report.md", "report.xml", "report.html")


def write_reports(run: ParityRun, directory: Path) -> None:
    """Write `FILES` into an existing directory."""
    for name, module in zip(FILES, (report_json, report_md, junit, report_html), strict=True):
        (directory / name).write_text(module.to_text(run), encoding="utf-8")
