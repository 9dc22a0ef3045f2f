"""`inspect`: what a variant directory holds. Needs the base install.

With `--json`: `command`, `path`, the manifest's own content as `manifest`, and computed from it `frame_size`,
`frame_rate`, `bitrate` (bit/s of all codebooks), `opset` (graph -> number) and `states`
(graph -> list of `name`, `kind`, `dtype`, `past_shape`, `present_shape`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimi_export.cli.console import show_json, show_rows, show_table
from mimi_export.cli.options import Json
from mimi_export.contract.directory import load_artifact
from mimi_export.contract.records import plain


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Variant directory.")],
    verify: Annotated[bool, typer.Option("--verify", help="Also compare every file with its SHA-256.")] = False,
    json: Json = False,
) -> None:
    """Show what a variant directory holds: model, layout, bitrates, files and the table of states.

    \b
      mimi-export inspect artifacts/streaming-8cb
      mimi-export inspect artifacts/streaming-8cb --json | jq .bitrate
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.runtime.graph_file import check_graph_file

    artifact = load_artifact(directory, verify_hashes=verify)
    manifest, geometry, shape = artifact.manifest, artifact.geometry, artifact.manifest.shape
    opsets = {str(kind): check_graph_file(artifact.graph_path(kind)) for kind in shape.kinds}
    if json:
        show_json({
            "command": "inspect",
            "path": str(directory),
            "frame_size": geometry.frame_size,
            "frame_rate": geometry.frame_rate,
            "bitrate": geometry.bitrate(shape.num_codebooks),
            "opset": opsets,
            "states": {kind: plain(spec.states) for kind, spec in manifest.specs.items()},
            "manifest": manifest.to_dict(),
        })  # fmt: skip
        return
    per_call = shape.frames_per_call or "any number of"
    counts = sorted({1, shape.num_codebooks, *(count for count in (4, 8, 16) if count < shape.num_codebooks)})
    bitrates = ", ".join(f"{count} cb {geometry.bitrate(count) / 1000:g}" for count in counts)
    rows = [
        ("source", manifest.source.model + (f" @ {manifest.source.revision}" if manifest.source.revision else "")),
        ("weights", manifest.source.caution),
        ("precision", manifest.precision),
        ("layout", f"{shape.layout}, {per_call} frames per call, batch {shape.rows or 'free'}"),
        ("frame", f"{geometry.frame_size} samples at {geometry.sampling_rate} Hz = {1000 / geometry.frame_rate:g} ms"),
        ("encoder gives", shape.head if shape.head != "both" else "codes and latents"),
        ("decoder takes", shape.start if shape.start != "nothing" else "nothing: there is none"),
        ("bitrates", f"{bitrates} kbit/s" if shape.num_codebooks else None),
        ("codebooks", f"{shape.num_codebooks} of {geometry.num_quantizers}, {geometry.codebook_size} entries each"),
        (
            "transformers",
            f"{geometry.num_hidden_layers} layers, {geometry.num_attention_heads} heads "
            f"({geometry.num_key_value_heads} for keys and values), window {geometry.sliding_window} tokens = "
            f"{geometry.sliding_window / geometry.tokens_per_frame / geometry.frame_rate:g} s",
        ),
        ("made with", ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.tools.items()))),
        ("opset", ", ".join(f"{kind} {opset}" for kind, opset in opsets.items())),
        ("conversion", " → ".join(str(record.get("pass", dict(record))) for record in manifest.conversion) or None),
    ]
    show_rows(manifest.name, rows)
    files = [(name, entry.bytes, entry.sha256[:12]) for name, entry in sorted(manifest.files.items())]
    show_table("Files", ("name", "bytes", "SHA-256"), files)
    for kind, spec in manifest.specs.items():
        states = [
            (state.past.name, state.present.name, state.dtype, _shape(state.past_shape), _shape(state.present_shape))
            for state in spec.states
        ]
        columns = ("input", "output", "type", "shape in", "shape out")
        show_table(f"States of the {kind}, in order, zeros at first", columns, states)


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
