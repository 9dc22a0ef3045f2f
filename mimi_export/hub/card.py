"""The model card (`README.md` of a repository), generated: prose around numbers that come from files.

Equal manifests and reports give an equal card, byte for byte, so publishing again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mimi_export import __version__
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.spec import GRAPH_KINDS
from mimi_export.errors import ArtifactError
from mimi_export.hub import tables
from mimi_export.hub.snippets import DOWNLOADS, Snippet, batch_snippet, variant_snippets
from mimi_export.hub.subjects import Json, Subject

KYUTAI = "kyutai/mimi"
LICENSES = {KYUTAI: "cc-by-4.0"}
ANY_REPO = "USER/NAME"
TAGS = ("onnx", "onnxruntime", "mimi", "audio", "speech", "codec", "neural-audio-codec", "streaming")


def model_card(subjects: Sequence[Subject], repo_id: str | None = None, base_model: str | None = None) -> str:
    """The card for these directories.

    Args:
        subjects: what is published; at least one.
        repo_id: where, for the download commands; a placeholder by default.
        base_model: the Hub id of the original, where the manifests only know a local directory.

    Raises:
        ArtifactError: the directories were made from different models.
    """
    models = sorted({subject.model for subject in subjects})
    if len(models) > 1:
        raise ArtifactError(
            f"the directories come from different models ({', '.join(models)}); publish them separately"
        )
    base = base_model or (models[0] if "/" in models[0] else None)
    repository = repo_id or ANY_REPO
    variants = [subject for subject in subjects if subject.manifest is not None]
    whole = next((subject for subject in subjects if subject.batch is not None), None)
    parts = [
        front_matter(base, whole is not None),
        f"# Mimi as streaming ONNX models\n\n{_lead(subjects, base, models[0])}",
    ]
    if variants:
        parts += [_variants(variants), _choice(variants), _use(variants, repository)]
    if whole is not None:
        parts.append(_whole_clips(whole, repository))
    parts += [_quality(variants, whole), _speed(variants)] if variants else [_quality(variants, whole)]
    if variants:
        parts += [_differences(variants), _contract(variants)]
    parts.append(_attribution(base, subjects))
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(base_model: str | None, whole_clips: bool) -> str:
    """The metadata block that the Hub reads."""
    fields: dict[str, Any] = {"library_name": "transformers.js" if whole_clips else "onnx"}
    fields["license"] = LICENSES.get(base_model or "", "other")
    if fields["license"] == "other":
        fields["license_name"] = "license-of-the-original-weights"
    if base_model is not None:
        fields |= {"base_model": base_model, "base_model_relation": "quantized"}
    fields |= {"pipeline_tag": "audio-to-audio", "tags": list(TAGS)}
    lines = []
    for key, value in fields.items():
        lines += [f"{key}:", *(f"- {item}" for item in value)] if isinstance(value, list) else [f"{key}: {value}"]
    return "\n".join(["---", *lines, "---"])


def snippets(subjects: Sequence[Subject], repo_id: str | None = None) -> list[Snippet]:
    """The programs that the card of these directories shows, in order."""
    found: list[Snippet] = []
    manifest = _shown(subjects)
    if manifest is not None:
        found += variant_snippets(manifest)
    found += [batch_snippet(subject.batch, repo_id or ANY_REPO) for subject in subjects if subject.batch is not None]
    return found


def _shown(subjects: Sequence[Subject]) -> Manifest | None:
    """The variant that the snippets use: the first of the window layout."""
    manifests = [subject.manifest for subject in subjects if subject.manifest is not None]
    return next((manifest for manifest in manifests if manifest.shape.layout == "window"), None)


def _lead(subjects: Sequence[Subject], base: str | None, source: str) -> str:
    manifest = next((subject.manifest for subject in subjects if subject.manifest is not None), None)
    origin = f"[{base}](https://huggingface.co/{base})" if base else f"`{source}`"
    text = f"The neural audio codec {origin}, exported to ONNX with `mimi-export` {__version__}."
    if source.startswith("synthetic"):
        text = (
            "> **These files hold made-up weights.** They show sizes, speed and exactness of the export and compress "
            f"no speech.\n\n{text}"
        )
    if manifest is None:
        return text
    geometry = manifest.geometry
    milliseconds = 1000 / geometry.frame_rate
    return (
        f"{text} An encoder turns {geometry.sampling_rate / 1000:g} kHz mono audio into codes and a decoder turns "
        "codes "
        f"into audio, both as a *stream*: {geometry.frame_size} samples ({milliseconds:g} ms) make one frame of codes, "
        f"{geometry.frame_rate:g} frames a second, {geometry.bits_per_code} bits a code. What is computed in pieces "
        "equals what PyTorch computes over the whole clip; the tables below say how exactly."
    )


def _variants(subjects: Sequence[Subject]) -> str:
    return (
        f"## Variants\n\n{tables.variants(subjects)}\n\n"
        "Each directory holds `encoder_model.onnx`, `decoder_model.onnx`, `state_spec.txt` and a `manifest.json` with "
        "inputs, outputs, states, sizes and SHA-256 of every file. A decoder takes any number of codebooks from 1 "
        "up to "
        "its own; the first codes of a larger variant are the codes of a smaller one."
    )


def _choice(subjects: Sequence[Subject]) -> str:
    manifests = [subject.manifest for subject in subjects if subject.manifest is not None]
    advice = []
    counts = sorted({manifest.shape.num_codebooks for manifest in manifests})
    if len(counts) > 1:
        rates = ", ".join(f"{count} ({manifests[0].geometry.bitrate(count) / 1000:g} kbit/s)" for count in counts)
        advice.append(
            f"**Number of codebooks**: {rates}. More sound better and take more bits; if in doubt take {counts[0]}."
        )
    precisions = {manifest.precision.partition("-")[0] for manifest in manifests}
    words = {
        "fp32": "**fp32** is exact: take it as the reference, and where size does not matter.",
        "fp16": "**fp16** halves download and disk; memory and speed are those of fp32, codes differ slightly.",
        "int8": "**int8** is the smallest and fastest, and the least exact; see the quality table.",
    }
    advice += [text for precision, text in words.items() if precision in precisions]
    shapes = {manifest.shape.layout for manifest in manifests}
    kinds = {
        "window": "**window** layout: any number of frames in a call, no bookkeeping. Take it unless you need "
        "fixed shapes.",
        "ring": "**ring** layout: every shape is fixed and each row of a batch is a stream of its own that begins "
        "where its "
        "`position` is 0. Take it for servers, accelerators and graph capture.",
    }
    advice += [text for layout, text in kinds.items() if layout in shapes]
    return "## Which one\n\n" + "\n".join(f"- {line}" for line in advice)


def _use(subjects: Sequence[Subject], repository: str) -> str:
    manifest = _shown(subjects)
    if manifest is None:
        return ""
    download = f"hf download {repository} --include '{manifest.name}/*' --local-dir {DOWNLOADS}"
    blocks = [
        f"## Use\n\n```sh\n{download}\n```\n\n"
        "The programs below read `speech.wav` and write what it sounds like after the codec "
        "(`decoded.wav`, or `decoded.f32` with raw little-endian float32 samples)."
    ]
    for snippet in variant_snippets(manifest):
        blocks.append(
            f"### {snippet.title}\n\n```sh\n{snippet.install}\n```\n\n```{snippet.language}\n{snippet.code}\n```"
        )
    return "\n\n".join(blocks)


def _whole_clips(subject: Subject, repository: str) -> str:
    if subject.batch is None:
        return ""
    snippet = batch_snippet(subject.batch, repository)
    return (
        f"## Whole clips\n\n{tables.whole_clips(subject)}\n\n"
        f"For audio that is there as a whole, {subject.batch.num_codebooks} codebooks. The encoder takes any "
        "length and "
        "fills the last frame with zeros; memory grows with the square of the length, so use a stream for long audio. "
        f"Measured on generated speech-like sound of {_seconds(subject.reports)}.\n\n"
        f"### {snippet.title}\n\n```sh\n{snippet.install}\n```\n\n```{snippet.language}\n{snippet.code}\n```"
    )


def _quality(subjects: Sequence[Subject], whole: Subject | None) -> str:
    records = [record for subject in subjects for record in subject.reports]
    blocks = ["## Quality"]
    if records:
        first = records[0]["clips"][0]
        ways = ", ".join(first["codes"])
        blocks += [
            f"Against untouched batch PyTorch (`transformers`), on {_clips(records[0])}. Codes are counted over "
            "all of it "
            f"and over calls of {ways} frames; levels are those of `{first['name']}` ({first['seconds']:.3g} s). "
            "A *tie* is "
            "a code where two entries are equally near to within float rounding.",
            tables.quality(records),
        ]
        compared = [record for record in records if isinstance(record.get("published"), dict)]
        if compared:
            seconds = compared[0]["published"]["seconds"]
            blocks += [f"Streaming against batch, the first {seconds:g} s, end to end:", tables.published(compared)]
    everything = [*records, *(whole.reports if whole is not None else ())]
    blocks += ["What each had to reach to be published:", tables.checks(everything)]
    return "\n\n".join(blocks)


def _speed(subjects: Sequence[Subject]) -> str:
    records = [record for subject in subjects for record in subject.reports if isinstance(record.get("timing"), dict)]
    if not records:
        return ""
    tools = ", ".join(f"{name} {value}" for name, value in sorted(records[0].get("tools", {}).items()))
    return (
        f"## Speed\n\n{tables.speed(records)}\n\n"
        "Medians and 95th percentiles for one frame of one stream, one call a frame where the graph allows it, "
        "measured by `mimi-export parity` while it checked the codes. Real-time factor: seconds of work for a second "
        f"of audio, both directions. Measured with {tools}.\n\n"
        "A frame reads all weights once. On Linux with glibc, whatever the language, a program that is started with "
        "`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` has them in huge pages and needs less time for a frame."
    )


def _differences(subjects: Sequence[Subject]) -> str:
    manifest = next(subject.manifest for subject in subjects if subject.manifest is not None)
    geometry = manifest.geometry
    token = 2 * geometry.num_hidden_layers * geometry.num_key_value_heads * geometry.head_dim * 4
    rate = geometry.frame_rate * geometry.tokens_per_frame
    kept = geometry.sliding_window - 1
    card = next((r["published"]["card_streaming"] for s in subjects for r in s.reports if "published" in r), None)
    claim = f" (their card states an SNR of {tables.level(card['snr_db'], 1)} dB against batch)" if card else ""
    return (
        "## What differs from other streaming exports of Mimi\n\n"
        f"Earlier public models{claim} use the same files, names and order of inputs, so clients need no change. Three "
        "things are computed differently, because a causal network can stream exactly:\n\n"
        "- **The first frame.** PyTorch continues the first sample to the left before the strided convolution in "
        "front of "
        "the quantiser; zeros there change every code of frame 0. The graph knows a first call by itself.\n"
        "- **Transposed convolutions.** What overlaps into the next call is kept without bias, which is added once.\n"
        f"- **The attention window.** PyTorch attends to {geometry.sliding_window} tokens "
        f"({geometry.sliding_window / rate:g} s). Without that limit everything after it differs.\n\n"
        f"Keys and values therefore stop growing: at most {kept} tokens, {kept * token / tables.MIB:.2g} MiB for "
        "each graph "
        f"and stream. Kept for ever they would be {3600 * rate * token / tables.MIB:.0f} MiB after an hour."
    )


def _contract(subjects: Sequence[Subject]) -> str:
    blocks = [
        "## Contract",
        "Feed every output `present_…` back as the input `past_…` of the next call and treat it as opaque; inputs and "
        "outputs come in this order. A stream begins with zeros of the shape in the last column, for one row.",
    ]
    for manifest in tables.layouts(subjects):
        shape = manifest.shape
        calls = "any number of frames" if shape.frames_per_call is None else f"{shape.frames_per_call} frame(s)"
        for kind in GRAPH_KINDS:
            blocks += [
                f"<details><summary>{kind}, {shape.layout} layout, {calls} a call ({shape.num_codebooks} "
                "codebooks)"
                f"</summary>\n\n{tables.states(manifest.spec(kind))}\n\n</details>"
            ]
    return "\n\n".join(blocks)


def _attribution(base: str | None, subjects: Sequence[Subject]) -> str:
    tools: dict[str, str] = {}
    for subject in subjects:
        made_with = subject.manifest or subject.batch
        tools |= dict(made_with.tools) if made_with is not None else {}
    made = ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
    source = subjects[0].manifest.source if subjects[0].manifest else subjects[0].batch and subjects[0].batch.source
    revision = f" at revision `{source.revision}`" if source and source.revision else ""
    if base == KYUTAI:
        text = (
            f"The weights are those of [{base}](https://huggingface.co/{base}){revision} by Kyutai, licensed "
            "CC-BY-4.0 and "
            "changed only in format and, where a variant says so, in precision. The codec is described in *Moshi: a "
            "speech-text foundation model for real-time dialogue* "
            "([arXiv:2410.00037](https://arxiv.org/abs/2410.00037))."
        )
    elif base:
        text = f"The weights are those of [{base}](https://huggingface.co/{base}){revision}; their licence applies."
    else:
        text = f"The weights come from `{subjects[0].model}`{revision}."
    return f"## Attribution\n\n{text}\n\nMade with {made}."


def _clips(record: Json) -> str:
    return ", ".join(f"`{clip['name']}` ({clip['seconds']:.3g} s)" for clip in record["clips"])


def _seconds(records: Sequence[Json]) -> str:
    return " and ".join(f"{clip['seconds']:g} s" for clip in records[0]["clips"])


def report_text(subjects: Sequence[Subject]) -> str:
    """The parity records behind the card, as published beside it."""
    records = [record for subject in subjects for record in subject.reports]
    return json.dumps({"format_version": 1, "variants": records}, indent=2, ensure_ascii=False) + "\n"
