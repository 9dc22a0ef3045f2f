"""`export` and `build`: make variant directories from a checkpoint. Both need the export extra."""

from __future__ import annotations

import dataclasses
import time
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import typer

from mimi_export.cli.console import Steps, show_json, show_rows, show_table
from mimi_export.cli.errors import needs_extra
from mimi_export.cli.options import ARTIFACTS, Force, Json, Model, Revision
from mimi_export.contract.files import refuse_taken
from mimi_export.contract.manifest import BATCH_MANIFEST, MANIFEST_NAME, BatchManifest, Manifest
from mimi_export.contract.recipes import DEFAULT_MODEL
from mimi_export.contract.spec import Head, KvLayout, Shape, Start
from mimi_export.errors import ConfigError


def export(
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    num_codebooks: Annotated[
        int | None, typer.Option(min=1, help="Codes a frame [default: 8, 1.1 kbit/s; of whole clips all].")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory to make [default: artifacts/NAME].")
    ] = None,
    kv_cache: Annotated[
        KvLayout, typer.Option(help="window: any number of frames per call; ring: fixed shapes and a position.")
    ] = "window",
    frames_per_call: Annotated[
        int | None, typer.Option(min=1, help="Frames in one call of a ring [default: 1].")
    ] = None,
    head: Annotated[Head | None, typer.Option(help="What the encoder gives [default: codes].")] = None,
    start: Annotated[
        Start | None, typer.Option("--from", help="What the decoder takes [default: as --head]; nothing: no decoder.")
    ] = None,
    contract: Annotated[Literal["maai"] | None, typer.Option(help="Files for EncoderMimiOnnx of MaAI.")] = None,
    name: Annotated[str | None, typer.Option(help="The variant's name [default: DIR's].")] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", min=1, help="Streams in every call [default: free].")] = None,
    whole_clips: Annotated[bool, typer.Option("--whole-clips", help="Graphs for transformers.js, no streams.")] = False,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Of whole clips: fp32, fp16 or q8; may be repeated [default: fp32]."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export streaming encoder and decoder graphs from a checkpoint to a variant directory.

    \b
      mimi-export export --num-codebooks 8
      mimi-export export --kv-cache ring --frames-per-call 2
      mimi-export export --kv-cache ring --rows 16
      mimi-export export --head latents
      mimi-export export --contract maai
      mimi-export export --whole-clips --dtype fp32 --dtype q8
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    ring = kv_cache == "ring"
    if contract:
        if any((ring, num_codebooks, rows, whole_clips, dtype, head, start, name)):
            raise ConfigError("--contract fixes what the graphs are; only --frames-per-call goes with it")
        _export_maai(model, revision, output_dir or ARTIFACTS / "maai", frames_per_call or 1, force, json)
        return
    if whole_clips and (ring or frames_per_call is not None or rows is not None):
        raise ConfigError("--whole-clips has no streams; --kv-cache, --frames-per-call and --rows are for streams")
    if dtype and not whole_clips:
        raise ConfigError("--dtype goes with --whole-clips; for streaming variants use `mimi-export convert`")
    if frames_per_call is not None and not ring:
        raise ConfigError("--frames-per-call goes with --kv-cache ring; a window takes any number of frames")
    if whole_clips and (head or start):
        raise ConfigError("--head and --from are for streams; graphs for whole clips give and take codes")
    gives: Head = head or ("latents" if start == "latents" else "codes")
    if num_codebooks and gives == "latents":
        raise ConfigError("--num-codebooks goes with codes; latents have none (--head both gives both)")
    count = 0 if gives == "latents" else num_codebooks or 8
    if whole_clips:
        usual = "batch" + (f"-{num_codebooks}cb" if num_codebooks else "")
    else:
        usual = "streaming" + (f"-{count}cb" if count else "") + ("" if gives == "codes" else "-latents")
        usual += ("-ring" if ring else "") + (f"-batch{rows}" if rows else "")
    target = output_dir or ARTIFACTS / (name or usual)
    refuse_taken(target, force, BATCH_MANIFEST if whole_clips else MANIFEST_NAME)
    begin = time.monotonic()
    with needs_extra("export", "mimi-export export --whole-clips" if whole_clips else "mimi-export export"):
        from mimi_export.export.variant import export_variant, usual_start
        from mimi_export.export.whole_clip import export_batch
        from mimi_export.model.checkpoint import load_checkpoint
        from mimi_export.parity.whole_clip import check_batch
    made: Manifest | BatchManifest
    with Steps() as steps:
        steps.step(f"loading {model}")
        checkpoint = load_checkpoint(model, revision, progress=steps.advance)
        if whole_clips:
            made = clips = export_batch(
                checkpoint,
                target,
                num_codebooks,
                name=name,
                dtypes=tuple(dict.fromkeys(dtype or ["fp32"])),
                force=force,
                progress=steps.step,
                check=lambda directory: check_batch(checkpoint, directory, steps.step),
            )
            facts = {"num_codebooks": clips.num_codebooks, "layout": "batch", "dtypes": list(clips.dtypes)}
        else:
            takes = start or usual_start(checkpoint, gives)
            shape = Shape(count, kv_cache, (frames_per_call or 1) if ring else None, rows, gives, takes)
            made = export_variant(checkpoint, target, shape, name=name, force=force, progress=steps.step)
            facts = dataclasses.asdict(shape)
            facts |= {"batch": facts.pop("rows"), "from": facts.pop("start")}
    seconds = time.monotonic() - begin
    files = sorted(made.files.items())
    if json:
        show_json({
            "command": "export",
            "path": str(target),
            "name": made.name,
            **facts,
            "source": dataclasses.asdict(made.source),
            "files": {file: entry.bytes for file, entry in files},
            "seconds": seconds,
        })  # fmt: skip
        return
    show_rows(f"{target} is ready after {seconds:.0f} s", [(file, mebibytes(entry.bytes)) for file, entry in files])


def _export_maai(model: str, revision: str | None, target: Path, frames: int, force: bool, json: bool) -> None:
    from mimi_export.contract.manifest import MAAI_MANIFEST

    refuse_taken(target, force, MAAI_MANIFEST)
    with needs_extra("export", "mimi-export export --contract maai"):
        from mimi_export.export.maai import export_maai
        from mimi_export.model.checkpoint import load_checkpoint
    with Steps() as steps:
        steps.step(f"loading {model}")
        checkpoint = load_checkpoint(model, revision, progress=steps.advance)
        record = export_maai(checkpoint, target, frames, force=force, progress=steps.step)
    if json:
        show_json({"command": "export", "path": str(target), **record})
        return
    levels = [
        (name, f"{mebibytes(record['files'][name]['bytes'])}, {db:.1f} dB") for name, db in record["checks"].items()
    ]
    show_rows(f"{target} is ready: each graph's latents against PyTorch's", levels)


def build(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Variants to build; all of them without a name.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Take the weights from here, whatever the configurations say.")
    ] = None,
    revision: Revision = None,
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where the variant directories go.")] = ARTIFACTS,
    configs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Configurations [default: ./configs, else the package's].")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again what is unchanged, and replace what `build` did not make.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Measure each new variant; one that misses a budget is not good.")] = True,
    json: Json = False,
) -> None:
    """Build the configured variants; what is built already and unchanged is used again.

    Each is measured against batch PyTorch on 16 s of generated sound and must meet the budgets of its configuration.

    \b
      mimi-export build
      mimi-export build streaming-8cb --model synthetic
    """  # noqa: D301 - a backspace keeps the lines apart in --help
    from mimi_export.contract.recipes import find_configs, load_variants

    if revision is not None and model is None:
        raise ConfigError("--revision belongs to a --model; give both, or write the revision into the configuration")
    variants = load_variants(find_configs(configs))
    with needs_extra("export", "mimi-export build"):
        from mimi_export.export.build import build as build_variants
        from mimi_export.model.checkpoint import Checkpoint, load_checkpoint
        from mimi_export.parity.run import parity_gate
    with Steps() as steps:

        @lru_cache(maxsize=1)
        def load(name: str, wanted: str | None) -> Checkpoint:
            return load_checkpoint(name, wanted, progress=steps.advance)

        built = build_variants(
            variants,
            names or [],
            output_dir,
            model=model,
            revision=revision,
            force=force,
            check=parity_gate(variants, load, model, revision, steps.step) if check else None,
            progress=steps.step,
            load=load,
        )
    if json:
        records = [{"name": entry.name, "path": str(entry.path), "reused": entry.reused} for entry in built]
        show_json({"command": "build", "variants": records})
        return
    rows = [(entry.name, "unchanged" if entry.reused else "built", str(entry.path)) for entry in built]
    show_table("Variants", ("name", "state", "directory"), rows)


def mebibytes(size: int) -> str:
    """A size in bytes for people, in MiB (or in bytes where that would show nothing)."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size} bytes"
