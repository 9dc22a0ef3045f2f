"""The tables of the model card: every number in them comes from a manifest or from a record of `report.json`."""

from __future__ import annotations

from collections.abc import Sequence

from mimi_export.contract.manifest import BatchManifest, Manifest
from mimi_export.contract.report import Difference, FrameTime, Level, VariantRecord
from mimi_export.contract.spec import GRAPH_KINDS, Dim, GraphSpec

MIB = 2**20


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 1) -> str:
    """A Markdown table; columns from index `numbers` on are aligned on the right."""
    rule = [":--" if index < numbers else "--:" for index in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def level(value: Level, digits: int, form: str = "f") -> str:
    """A number of a report: its words `exact` and `lost` stay, `null` is a dash."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.{digits}{form}}"


def variants(manifests: Sequence[Manifest]) -> str:
    """What there is: sizes, bitrates, layouts."""
    rows = []
    for manifest in manifests:
        sizes = [_mib(manifest.files[spec.file_name].bytes) for spec in manifest.specs.values()]
        calls = "any" if manifest.shape.frames_per_call is None else str(manifest.shape.frames_per_call)
        count = manifest.shape.num_codebooks
        rate = f"{manifest.geometry.bitrate(count) / 1000:g} kbit/s" if count else "–"
        gives = [str(count)] * bool(count) + ["latents"] * (manifest.shape.head != "codes")
        rows.append([
            f"[`{manifest.name}`](./{manifest.name})", " and ".join(gives), rate,
            manifest.precision, manifest.shape.layout, calls, *[*sizes, "–"][:2],
        ])  # fmt: skip
    columns = ("variant", "codebooks", "bitrate", "precision", "layout", "frames a call", "encoder MiB", "decoder MiB")
    return markdown(columns, rows)


def whole_clips(batch: BatchManifest, records: Sequence[VariantRecord]) -> str:
    """The files for whole clips, by data type."""
    rows = []
    for record in records:
        names = [batch.dtypes[record.precision][kind] for kind in GRAPH_KINDS]
        sizes = [_mib(batch.files[name].bytes) for name in names]
        rows.append([
            f"`{record.precision}`", *(f"`{name}`" for name in names), *sizes,
            level(record.codes.equal_percent, 2), level(record.clips[0].decoder.snr_db, 1),
        ])  # fmt: skip
    columns = ("`dtype`", "encoder", "decoder", "encoder MiB", "decoder MiB", "equal codes %", "decoder SNR dB")
    return markdown(columns, rows, 3)


def quality(records: Sequence[VariantRecord]) -> str:
    """Agreement with batch PyTorch: codes of everything measured, levels of the first clip."""
    rows = []
    for record in records:
        codes, clip = record.codes, record.clips[0]
        counts = [str(count) if codes.total else "–" for count in (codes.differ, codes.ties)]
        rows.append([
            f"`{record.name}`", level(codes.equal_percent, 3), *counts,
            level(None if clip.latents is None else clip.latents.snr_db, 1), level(clip.decoder.snr_db, 1),
            level(clip.decoder.cosine, 7), level(clip.end_to_end.snr_db, 1),
        ])  # fmt: skip
    columns = (
        "variant", "equal codes %", "differ", "ties", "latents SNR dB", "decoder SNR dB", "decoder cosine",
        "end-to-end SNR dB",
    )  # fmt: skip
    return markdown(columns, rows)


def latents(records: Sequence[VariantRecord]) -> str:
    """What graphs give as latents, for each clip and way to call; nothing where none gives any."""
    rows = [
        [f"`{record.name}`", clip.name, way, *_three(difference, 9)]
        for record in records
        for clip in record.clips
        for way, difference in (clip.latent_calls or {}).items()
    ]
    return markdown(("variant", "clip", "frames a call", "SNR dB", "cosine", "max abs"), rows, 2) if rows else ""


def published(records: Sequence[VariantRecord]) -> str:
    """The row of the public models' own card beside ours: the first seconds, streaming against batch."""
    found = [(record.name, record.published) for record in records if record.published is not None]
    theirs = ["public models, as their card states", *_three(found[0][1].card_streaming, 4)]
    ours = [[f"`{name}`", *_three(facts.end_to_end, 7)] for name, facts in found]
    return markdown(("model", "SNR dB", "cosine", "max abs"), [theirs, *ours])


def speed(records: Sequence[VariantRecord]) -> str:
    """Milliseconds a frame, one stream, as measured while checking parity."""
    rows = []
    for record in records:
        if record.timing is not None:
            times = (record.timing.encoder, record.timing.decoder or FrameTime(None, None))
            values = [level(value, 1) for time in times for value in (time.median_ms, time.p95_ms)]
            rows.append([f"`{record.name}`", *values, level(record.timing.real_time_factor, 2)])
    columns = ("variant", "encoder ms", "encoder p95 ms", "decoder ms", "decoder p95 ms", "real-time factor")
    return markdown(columns, rows)


def states(graph: GraphSpec) -> str:
    """Every input and output of a graph in order, from the one definition of the state."""
    rows = [[
        f"`{graph.data_input.name}`", f"`{graph.data_output.name}`",
        f"{graph.data_input.dtype} → {graph.data_output.dtype}",
        f"{_shape(graph.data_input.shape)} → {_shape(graph.data_output.shape)}", "",
    ]]  # fmt: skip
    rows += [["", f"`{tensor.name}`", tensor.dtype, _shape(tensor.shape), ""] for tensor in graph.further]
    for state in graph.states:
        rows.append([
            f"`{state.past.name}`", f"`{state.present.name}`", state.dtype, _shape(state.past_shape),
            f"zeros {_shape(state.initial_shape(1))}",
        ])  # fmt: skip
    return markdown(("input", "output", "type", "shape", "first call"), rows, 5)


def checks(records: Sequence[VariantRecord]) -> str:
    """Every budget with what was found."""
    rows = [
        [f"`{record.name}`", check.metric, check.wanted, level(check.got, 2)]
        for record in records
        for check in record.checks
    ]
    return markdown(("variant", "measured", "wanted", "found"), rows, 3)


def _three(difference: Difference, digits: int) -> list[str]:
    return [level(difference.snr_db, 1), level(difference.cosine, digits), level(difference.max_abs, 2, "g")]


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"


def _shape(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"
