"""Exact streaming ONNX models from Kyutai's Mimi neural audio codec.

    import mimi_export

    codec = mimi_export.load("artifacts/streaming-8cb")        # or load("USER/NAME", variant="streaming-8cb")
    encoder, decoder = codec.encoder.stream(), codec.decoder.stream()
    speaker(decoder.push(encoder.push(block)))                  # any number of samples, 24 kHz mono float32

    mimi_export.export_variant("kyutai/mimi", "my-8cb", num_codebooks=8)      # needs PyTorch: mimi-export[export]
    mimi_export.convert_variant("my-8cb", "my-8cb-int8", "int8")
    assert mimi_export.check_parity("my-8cb", "my-8cb-int8").passed

Importing this is quick: each function imports what it needs when it is called. What goes wrong raises a
`mimi_export.errors.MimiExportError` that is the fitting builtin error as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from mimi_export.contract.manifest import Manifest
    from mimi_export.contract.precision import Fp16Options, Int8Options
    from mimi_export.media.resampling import Resampler as Resampler
    from mimi_export.parity.results import ParityRun
    from mimi_export.runtime import Codec as Codec
    from mimi_export.runtime import StreamPool as StreamPool
    from mimi_export.runtime.features import FeatureExtractor as FeatureExtractor
    from mimi_export.runtime.golden import GoldenResult

__version__ = "0.1.0"
__all__ = [
    "Codec", "FeatureExtractor", "Resampler", "StreamPool", "check_parity", "convert_variant", "export_variant", "load",
    "verify",
]  # fmt: skip
_PLACES = {
    "Codec": "mimi_export.runtime", "StreamPool": "mimi_export.runtime",
    "FeatureExtractor": "mimi_export.runtime.features", "Resampler": "mimi_export.media.resampling",
}  # fmt: skip


def load(
    directory: str | PathLike[str],
    *,
    threads: int = 1,
    provider: str = "cpu",
    verify_hashes: bool = False,
    huge_pages: bool = False,
    variant: str | None = None,
    revision: str = "main",
) -> Codec:
    """Open a variant, to make streams and pools from it.

    Args:
        directory: what `export_variant`, `convert_variant` or a download made; with `variant` a repository `USER/NAME`.
        threads: threads for one operator; 0 takes all cores. One is rarely beaten.
        provider: what computes, such as `cpu` or `cuda`, as the installed onnxruntime offers it.
        verify_hashes: compare every file with the manifest, not only its size.
        huge_pages: keep weights in huge pages (Linux 6.1 or later): faster frames for a slower load.
        variant: which variant of a repository on the Hugging Face Hub; fetched into the cache the first time.
        revision: branch, tag or commit of the repository.

    Raises:
        ArtifactError: the directory is no variant, is incomplete or was changed.
        ConfigError: there is no such provider, or with `variant` no such name of a repository.
        HubError: the variant is not in the cache and cannot be fetched.
    """
    from mimi_export.runtime import load as load_codec

    return load_codec(directory, threads, (provider,), verify_hashes, huge_pages, variant=variant, revision=revision)


def verify(directory: str | PathLike[str], *, provider: str = "cpu") -> GoldenResult:
    """Check a variant on this machine: hashes, inputs and outputs, state shapes, and its golden clip.

    Args:
        directory: the variant.
        provider: what computes, as for `load`.

    Returns:
        How the replay compares; `passed` says whether both codes and audio are good enough.

    Raises:
        ArtifactError: the directory is no variant, is incomplete or was changed, or has no golden clip.
        GraphError: a graph does not load, or hands on a state of another shape than it should.
        ConfigError: there is no such provider.
    """
    from mimi_export.contract.directory import load_artifact
    from mimi_export.runtime.golden import replay_golden

    return replay_golden(load_artifact(directory, verify_hashes=True), provider)


def export_variant(
    model: str,
    output_dir: str | PathLike[str],
    num_codebooks: int = 8,
    *,
    layout: Literal["window", "ring"] = "window",
    frames_per_call: int | None = None,
    rows: int | None = None,
    head: Literal["codes", "latents", "both"] = "codes",
    start: Literal["codes", "latents", "nothing"] | None = None,
    revision: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Manifest:
    """Export streaming encoder and decoder graphs of a model to a variant directory.

    Args:
        model: Hub id, local directory, `demo`, `synthetic` or `synthetic:tiny`.
        output_dir: the directory to make.
        num_codebooks: codes a frame.
        layout: how keys and values are kept; a `StreamPool` needs a ring.
        frames_per_call: frames in one call of a ring, 1 unless given.
        rows: fix the independent streams of a call; free unless given.
        head: what the encoder gives; `num_codebooks` says nothing where it is latents.
        start: what the decoder takes; what the encoder gives unless given, nothing where the model has no decoder.
        revision: of a Hub model.
        name: the variant's name; the directory's unless given.
        force: replace an earlier variant directory.

    Raises:
        ConfigError: there are no such graphs.
        CheckpointError: the model cannot be found, downloaded or read.
        OutputError: the directory exists and `force` is not given, or cannot be written.
    """
    from mimi_export.contract.spec import Shape
    from mimi_export.errors import needs_extra

    with needs_extra("export", "export_variant"):
        from mimi_export.export import variant
        from mimi_export.model.checkpoint import load_checkpoint
    checkpoint = load_checkpoint(model, revision)
    frames = frames_per_call or (1 if layout == "ring" else None)
    takes = start or variant.usual_start(checkpoint, head)
    shape = Shape(0 if head == "latents" else num_codebooks, layout, frames, rows, head, takes)
    return variant.export_variant(checkpoint, output_dir, shape, name=name, force=force)


def convert_variant(
    input_dir: str | PathLike[str],
    output_dir: str | PathLike[str],
    precision: Literal["fp16", "int8"] | Fp16Options | Int8Options,
    *,
    name: str | None = None,
    force: bool = False,
) -> Manifest:
    """Convert a finished fp32 variant to 16-bit weights or 8-bit arithmetic.

    Args:
        input_dir: the fp32 variant.
        output_dir: the directory to make.
        precision: its name, or the options of one, such as `Int8Options(signed=True)`.
        name: the new variant's name; the directory's unless given.
        force: replace an earlier variant directory.

    Raises:
        ConfigError: no such precision, or a pattern that fits no weight.
        ArtifactError: `input_dir` is no finished fp32 variant.
        OutputError: `output_dir` exists and `force` is not given, or cannot be written.
    """
    from mimi_export.contract.precision import PRECISIONS
    from mimi_export.errors import ConfigError, needs_extra

    with needs_extra("export", "convert_variant"):
        from mimi_export.export.convert import convert
    if isinstance(precision, str):
        if precision not in PRECISIONS:
            raise ConfigError(f"there is no precision {precision!r}, expected {' or '.join(PRECISIONS)}")
        precision = PRECISIONS[precision]()
    return convert(input_dir, output_dir, precision, name=name, force=force).manifest


def check_parity(
    *directories: str | PathLike[str],
    audio: Sequence[str | PathLike[str]] | None = None,
    model: str | None = None,
    revision: str | None = None,
    depth: Literal["quick", "default", "deep"] = "default",
    explain_failures: bool = False,
    provider: str = "cpu",
) -> ParityRun:
    """Measure variants against untouched batch PyTorch, and judge them by their precision's budgets.

    Args:
        directories: variant directories.
        audio: files to measure on, the most important first; generated sound unless given.
        model: the reference; what each variant was made from unless given.
        revision: of `model`.
        depth: how much to look at; a report's `skipped` says what was not.
        explain_failures: look for the place that is to blame in variants that miss a budget.
        provider: what computes the variants' graphs, as for `load`.

    Returns:
        What was measured; `passed` says whether every budget is met.

    Raises:
        CheckpointError: a reference cannot be had.
        AudioError: a file cannot be read.
        ConfigError: there is no such provider.
    """
    from pathlib import Path

    from mimi_export.errors import needs_extra

    with needs_extra("export", "check_parity"):
        from mimi_export.parity import depth as depths
        from mimi_export.parity import run
        from mimi_export.parity.clips import clips_from_files
    clips = clips_from_files([Path(path) for path in audio]) if audio else None
    chosen = {"quick": depths.QUICK, "default": depths.DEFAULT, "deep": depths.DEEP}[depth]
    return run.check_parity(
        directories, clips, model=model, revision=revision, depth=chosen, explain_failures=explain_failures,
        provider=provider,
    )  # fmt: skip


def __getattr__(name: str) -> Any:
    """The classes, which are imported when they are first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *(name for name in __all__ if name not in globals())]
