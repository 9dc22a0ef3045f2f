"""Small pieces of HTML that the report is made of."""

from __future__ import annotations

import html
from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], why: int | None = None) -> str:
    """Cells are HTML; column `why` holds sentences, and such a table becomes a list on a narrow screen."""
    head = "".join(f"<th{_left(i, why)}>{column}</th>" for i, column in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{_left(i, why)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    kind = ' class="stack"' if why is not None else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _left(index: int, why: int | None) -> str:
    return ' class="why"' if index == why else ""


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Colours (`#rgb` or the name of a variable) with what they mean."""
    fills = ((colour if colour.startswith("#") else f"var(--{colour})", name) for colour, name in entries)
    items = "".join(f'<span><i style="background:{fill}"></i>{text(name)}</span>' for fill, name in fills)
    return f'<div class="legend">{items}</div>'


def axis(seconds: float) -> str:
    """A time axis in seconds."""
    return f'<div class="axis"><span>0</span><span>{seconds / 2:.3g}</span><span>{seconds:.3g} s</span></div>'


def sentence(words: str) -> str:
    """With a capital letter and a full stop."""
    return words[:1].upper() + words[1:].rstrip(".") + "."


def pill(good: bool, yes: str, no: str) -> str:
    """A coloured word."""
    return f'<span class="pill {tone(good)}">{yes if good else no}</span>'


def tone(good: bool) -> str:
    """The class of a verdict."""
    return "good" if good else "bad"


def text(words: str) -> str:
    """Words as HTML."""
    return html.escape(str(words))
