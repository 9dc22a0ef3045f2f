"""`report.md`: the verdict and the tables, for a CI job's summary."""

from __future__ import annotations

from mimi_export.parity.reports import tables
from mimi_export.parity.reports.tables import Table
from mimi_export.parity.results import ParityRun


def to_text(run: ParityRun) -> str:
    """`report.md` as text."""
    parts = [f"# Parity: {tables.verdict(run)}"]
    parts += [f"> **{line}**" for line in tables.cautions(run)]
    if found := run.problems:
        parts.append("\n".join(f"- **{line}**" for line in found))
    if left := tables.skipped(run):
        parts.append(f"Not looked at: {'; '.join(left)}.")
    if run.reports:
        made = (tables.quality, tables.latents, tables.listened, tables.cost, tables.published, tables.codebooks,
                tables.clips)  # fmt: skip
        for table in filter(lambda table: table.rows, (make(run) for make in made)):
            parts += [f"## {table.title}", *filter(None, [table.note]), grid(table)]
    return "\n\n".join(parts) + "\n"


def grid(table: Table) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(table.columns) + " |", "|:--" + "|--:" * (len(table.columns) - 1) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return f"**{text}**" if text in tables.BAD else text.replace("|", "\\|")
