"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ARTIFACTS = Path("artifacts")
DEFAULT_VARIANT = ARTIFACTS / "streaming-8cb"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists already.")]
Variant = Annotated[Path, typer.Option(metavar="DIR", help="Variant directory with the graphs.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Hub id (kyutai/mimi), local directory, or built in: `demo` (small, speaks), `synthetic` and "
        "`synthetic:tiny` (made up).",
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a Hub model.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of one operator; 0 takes all cores. One is rarely beaten.")]

Provider = Annotated[
    str, typer.Option(metavar="NAME", help="What computes: cpu, cuda … as the installed onnxruntime offers it.")
]
