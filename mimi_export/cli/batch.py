"""What `export --batch` does: graphs for whole clips, in the layout of transformers.js.

With a number after it the graphs are streaming ones of that fixed batch, which is the business of `export`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import Steps, show_json, show_rows
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import ARTIFACTS
from mimi_export.contract.files import refuse_taken
from mimi_export.contract.manifest import BATCH_MANIFEST

Batch = Annotated[
    bool,
    typer.Option(
        "--batch",
        help="Graphs for whole clips instead of streams, in the layout that transformers.js loads; checked against "
        "PyTorch before they are kept. With a number (--batch 4): streaming graphs of that fixed batch.",
    ),
]
Rows = Annotated[
    int | None, typer.Argument(metavar="N", min=1, help="After --batch: the rows of every call [default: free].")
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="NAME", help="With --batch: fp32, fp16 or q8; may be repeated [default: fp32]."),
]


def export_whole_clips(
    model: str,
    revision: str | None,
    num_codebooks: int | None,
    output_dir: Path | None,
    name: str | None,
    dtypes: list[str] | None,
    force: bool,
    json: bool,
) -> None:
    """Export, check, show."""
    usual = "batch" if num_codebooks is None else f"batch-{num_codebooks}cb"
    target = output_dir or ARTIFACTS / (name or usual)
    refuse_taken(target, force, BATCH_MANIFEST)
    begin = time.monotonic()
    with needs_extra("export", "mimi-export export --batch"):
        from mimi_export.export.whole_clip import export_batch
        from mimi_export.model.checkpoint import load_checkpoint
        from mimi_export.parity.whole_clip import check_batch
    with Steps() as steps:
        steps.step(f"loading {model}")
        checkpoint = load_checkpoint(model, revision, progress=steps.advance)
        manifest = export_batch(
            checkpoint,
            target,
            num_codebooks,
            name=name,
            dtypes=tuple(dict.fromkeys(dtypes or ["fp32"])),
            force=force,
            progress=steps.step,
            check=lambda directory: check_batch(checkpoint, directory, steps.step),
        )
    seconds = time.monotonic() - begin
    if json:
        show_json({
            "command": "export",
            "path": str(target),
            "name": manifest.name,
            "num_codebooks": manifest.num_codebooks,
            "layout": "batch",
            "dtypes": list(manifest.dtypes),
            "source": {"model": manifest.source.model, "revision": manifest.source.revision},
            "files": {file: entry.bytes for file, entry in sorted(manifest.files.items())},
            "seconds": seconds,
        })  # fmt: skip
        return
    files = [(file, f"{entry.bytes / 2**20:.1f} MiB") for file, entry in sorted(manifest.files.items())]
    show_rows(f"{target} is ready after {seconds:.0f} s", files)
