"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

ARTIFACTS = Path("artifacts")
DEFAULT_VARIANT = ARTIFACTS / "streaming-8cb"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists already.")]
Variant = Annotated[Path, typer.Option("--variant", metavar="DIR", help="Variant directory with the graphs.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Hub id (kyutai/mimi), local directory, or built in: `demo` (small, speaks), `synthetic` and "
        "`synthetic:tiny` (made up).",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a Hub model.")
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads of one operator; 0 takes all cores. One is rarely beaten.")
]

Provider = Annotated[
    str,
    typer.Option(
        "--provider", metavar="NAME", help="What computes: cpu, cuda … as the installed onnxruntime offers it."
    ),
]


def takes_options(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have an option for each field of the dataclass `kind`; its parameter `options` gets the instance.

    A tuple is an option that may be given several times. Fields carry `help` and `metavar` as metadata.
    """
    types = typing.get_type_hints(kind)

    def parameter(entry: Field[Any]) -> inspect.Parameter:
        wanted, default = types[entry.name], entry.default
        shown = typer.Option(
            f"--{entry.name.replace('_', '-')}", metavar=entry.metadata["metavar"], help=entry.metadata["help"]
        )
        if typing.get_origin(wanted) is tuple:
            wanted, default = list[str] | None, None
        return inspect.Parameter(
            entry.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[wanted, shown]
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {entry.name: values.pop(entry.name) for entry in fields(kind)}
            given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            given = {name: value for name, value in given.items() if value is not None and value != ()}
            command(options=kind(**given), **values)

        added = [parameter(entry) for entry in fields(kind)]
        order: list[inspect.Parameter] = []
        for value in inspect.signature(command, eval_str=True).parameters.values():
            order += added if value.name == "options" else [value.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        run.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
        run.__annotations__ = {value.name: value.annotation for value in order}
        return run

    return decorate
