"""`download`: a ready variant from the Hugging Face Hub. Needs the base install only.

With `--json`: `command`, `path`, `repo_id`, `variant`, `revision` (the commit), `files` and `bytes`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import Steps, show_json, show_rows
from mimi_export.cli.options import ARTIFACTS, Force, Json


def download(
    place: Annotated[str, typer.Argument(metavar="USER/NAME[/VARIANT]", help="Repository on the Hub, and a variant.")],
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory to make [default: artifacts/VARIANT].")
    ] = None,
    revision: Annotated[str, typer.Option(metavar="REV", help="Branch, tag or commit.")] = "main",
    force: Force = False,
    json: Json = False,
) -> None:
    """Get a ready variant from the Hugging Face Hub, every file checked with its SHA-256.

    \b
      mimi-export download me/mimi-onnx/streaming-8cb
      mimi-export encode speech.wav speech.safetensors

    An interrupted download goes on where it stopped; what the cache has is not fetched again, and is enough without a
    connection (or with HF_HUB_OFFLINE=1). A private repository needs HF_TOKEN or `hf auth login`.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.contract.directory import load_artifact
    from mimi_export.contract.files import atomic_directory
    from mimi_export.remote.variants import Place, fetch_variant

    parsed = Place.parse(place)
    with Steps() as steps:
        steps.step(f"asking for {place}")
        found = fetch_variant(parsed, revision, progress=steps.advance)
        target = output_dir or ARTIFACTS / found.path.name
        with atomic_directory(target, force) as directory:
            shutil.copytree(found.path, directory, dirs_exist_ok=True)
            manifest = load_artifact(directory, verify_hashes=True).manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    if json:
        show_json({
            "command": "download",
            "path": str(target),
            "repo_id": parsed.repository,
            "variant": found.path.name,
            "revision": found.commit,
            "files": len(manifest.files),
            "bytes": size,
        })  # fmt: skip
        return
    rows = [
        ("from", f"{parsed.repository}/{found.path.name} @ {found.commit}"),
        ("files", f"{len(manifest.files)}, {size / 2**20:.1f} MiB, all with the SHA-256 of the manifest"),
        ("model", manifest.source.model),
    ]
    show_rows(str(target), rows)
