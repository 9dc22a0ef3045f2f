"""All four forms of a report, written into one directory."""

from __future__ import annotations

from pathlib import Path

from mimi_export.parity.reports import html, json, junit, markdown
from mimi_export.parity.results import ParityRun

FILES = ("report.json", "report.md", "report.xml", "report.html")


def write_reports(run: ParityRun, directory: Path) -> None:
    """Write `FILES` into an existing directory."""
    for name, module in zip(FILES, (json, markdown, junit, html), strict=True):
        (directory / name).write_text(module.to_text(run), encoding="utf-8")
