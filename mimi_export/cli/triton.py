"""`triton`: a model repository for NVIDIA's Triton Inference Server.

With `--json`: `command`, `path`, `models` (their names), `source` (the variant).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import Steps, show_json, show_rows
from mimi_export.cli.options import Force, Json


def triton(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Variant directory with the ring layout.")],
    out: Annotated[Path, typer.Option(metavar="REPO", help="The model repository to write.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Models are NAME-encoder and NAME-decoder [the variant's].")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", help="Streams in one call at most.")] = 16,
    streams: Annotated[int, typer.Option(metavar="N", help="Streams of an instance at a time; more wait.")] = 64,
    instances: Annotated[int, typer.Option(metavar="N", help="Sessions of a graph; as many as cores for it.")] = 1,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads of one session.")] = 1,
    delay_ms: Annotated[int, typer.Option(metavar="MS", help="How long a request may wait for others.")] = 5,
    idle_seconds: Annotated[int, typer.Option(metavar="S", help="A stream that is silent for so long is ended.")] = 60,
    version: Annotated[int, typer.Option(metavar="N", help="Version of the models.")] = 1,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a model repository for Triton: graphs, configurations, a client, and a page that says how to start it.

    \b
      mimi-export triton artifacts/ring-8cb --out models

    States stay in the server, streams of all ages share a call. It needs a variant of --kv-cache ring.
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.contract.directory import load_artifact
    from mimi_export.serving.triton import TritonOptions, write_repository

    options = TritonOptions(name, rows, streams, instances, threads, delay_ms, idle_seconds, version)
    with Steps() as steps:
        steps.step("hashing the files")
        artifact = load_artifact(directory, verify_hashes=True)
        models = write_repository(artifact, out, options, force, steps.step)
    if json:
        show_json({"command": "triton", "path": str(out), "models": models, "source": artifact.manifest.name})
        return
    show_rows(f"wrote {out}", [("models", ", ".join(models)), ("how to start it", out / "README.md")])
