"""The command line: each command parses its arguments, calls one function and shows the result.

Only the standard library, typer and rich are imported here; a command imports what it needs when it runs, so
`--help` is quick and the base install runs everything that needs no PyTorch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mimi_export import __version__
from mimi_export.cli import (
    bench,
    convert,
    download,
    export,
    inspect,
    mic,
    parity,
    serve,
    tokenize,
    transcode,
    triton,
    upload,
    verify,
    web,
)
from mimi_export.cli.errors import errors_as_exit_codes, exit_codes

COMMANDS: dict[Callable[..., None], str] = {  # in the order of --help
    download.download: "Get a ready variant from the Hub, without PyTorch.",
    export.export: "Make encoder and decoder graphs from a checkpoint.",
    export.build: "Make the configured variants that are not there yet.",
    convert.sensitivity: "Measure what 8 bits cost, one group of weights at a time.",
    transcode.encode: "Audio file to codes.",
    transcode.decode: "Codes to audio file.",
    transcode.features: "Audio file to latents.",
    transcode.roundtrip: "Audio file to codes and back to audio.",
    tokenize.tokenize: "A corpus to Parquet files of codes, on all cores or Ray.",
    tokenize.tokenize_export: "A corpus of codes for WebDataset or Lhotse.",
    mic.mic: "Microphone to codes to loudspeaker, live.",
    inspect.inspect: "Show what a variant directory holds.",
    parity.parity: "Measure variants against batch PyTorch.",
    verify.verify: "Check a downloaded variant, without PyTorch.",
    bench.bench: "Measure speed side by side with other ways to run Mimi.",
    serve.serve: "Serve live streams over WebSockets.",
    triton.triton: "Write a model repository for Triton Inference Server.",
    upload.card: "Write the model card of variants.",
    upload.upload: "Publish variants on the Hugging Face Hub.",
    web.web: "A page that runs variants in the browser.",
}

HELP = """Exact streaming ONNX models of Kyutai's Mimi codec. Results go to stdout.

\b
  mimi-export export --model kyutai/mimi --num-codebooks 8 --output-dir artifacts/streaming-8cb
"""


class _Group(TyperGroup):
    """The group of all commands; it knows the exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with errors_as_exit_codes():
            return super().invoke(ctx)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mimi-export {__version__}")
        raise typer.Exit


def _global_options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more, and show the traceback of an error.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    logger = logging.getLogger("mimi_export")
    if verbose:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", force=True)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)


def _application() -> typer.Typer:
    codes = ", ".join(f"{code} {meaning}" for code, meaning in exit_codes().items())
    application = typer.Typer(
        cls=_Group,
        help=HELP,
        epilog=f"Exit codes: {codes}.",
        no_args_is_help=True,
        rich_markup_mode=None,  # help texts hold brackets, which are no markup
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    application.callback()(_global_options)
    for command, short_help in COMMANDS.items():
        application.command(short_help=short_help)(command)
    application.add_typer(convert.group, name="convert", short_help="Make fp16 and int8 variants from an fp32 one.")
    return application


app = _application()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (by default the program's own) and return its exit code."""
    try:
        typer.main.get_command(app)(args=arguments, prog_name="mimi-export")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0
