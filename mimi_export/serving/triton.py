"""A model repository for NVIDIA's Triton Inference Server: many live streams, batched and with their states kept there.

    REPO/
        NAME-encoder/config.pbtxt    NAME-encoder/1/model.onnx
        NAME-decoder/config.pbtxt    NAME-decoder/1/model.onnx
        client.py  README.md         how to start the server and how to talk to it
        variant.json                 the manifest of the variant that the graphs are from

A stream is a Triton sequence and a call one request of it. Triton keeps the states (implicit state): where a sequence
starts, every state is the `zero_data` of its `initial_state`, position 0 among them, which is all that begins a stream
in a ring; what a slot held before goes. So the graphs need no control input. The `oldest` strategy joins requests of
different sequences to one call.

Two things of Triton shape these files. It pairs a state's input and output by their places in alphabetical order, so
the names have to sort alike: `past_X` and `present_X` do. And its `model_warmup` runs beside the sequence batcher,
where the onnxruntime backend finds no state to write and refuses to load the model: the client warms up instead.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

from mimi_export.contract.directory import Artifact
from mimi_export.contract.files import atomic_directory
from mimi_export.contract.manifest import MANIFEST_NAME
from mimi_export.contract.progress import Progress, no_progress
from mimi_export.contract.records import check_range
from mimi_export.contract.spec import GraphSpec, StateSpec, TensorSpec
from mimi_export.errors import ConfigError

MARKER = "variant.json"
TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
MOST = 1 << 16


@dataclass(frozen=True)
class TritonOptions:
    """How Triton runs the graphs.

    Attributes:
        name: how the names of the models begin; the variant's own name unless given.
        rows: streams in one call at most.
        streams: streams of an instance whose states are kept at a time; more wait for a free slot.
        instances: sessions of a graph that compute at the same time.
        threads: threads of one session.
        delay_ms: how long a request may wait for others.
        idle_seconds: a stream that sends nothing for so long is ended.
        version: of the models.

    Raises:
        ConfigError: a value out of range, or fewer streams than rows.
    """

    name: str | None = None
    rows: int = 16
    streams: int = 64
    instances: int = 1
    threads: int = 1
    delay_ms: int = 5
    idle_seconds: int = 60
    version: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "instances", "threads", "idle_seconds", "version"):
            check_range(name, getattr(self, name), 1, MOST)
        check_range("streams", self.streams, self.rows, MOST)
        check_range("delay_ms", self.delay_ms, 0, 1000)


def write_repository(
    artifact: Artifact,
    repository: Path,
    options: TritonOptions = TritonOptions(),
    force: bool = False,
    progress: Progress = no_progress,
) -> list[str]:
    """Write the whole repository, or nothing.

    Returns:
        The names of its models.

    Raises:
        ConfigError: the variant has the window layout or fixed rows, or its name is none for a directory.
        OutputError: `repository` is there already and `force` is not given, or cannot be written.
    """
    manifest = artifact.manifest
    name = manifest.name if options.name is None else options.name
    if manifest.shape.layout != "ring":
        raise ConfigError(
            f"{artifact.path} has the window layout, whose states have another shape at first; Triton needs a ring: "
            "export one with --kv-cache ring"
        )
    if manifest.shape.rows is not None:
        raise ConfigError(f"{artifact.path} has {manifest.shape.rows} fixed rows; export one without --rows")
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ConfigError(f"{name!r} is no name for a model; give letters, digits, '-', '_' and '.' with --name")
    models = {f"{name}-{kind}": spec for kind, spec in manifest.specs.items()}
    with atomic_directory(repository, force, MARKER) as folder:
        for model, spec in models.items():
            progress(f"writing {model}")
            version = folder / model / str(options.version)
            version.mkdir(parents=True)
            shutil.copyfile(artifact.path / spec.file_name, version / "model.onnx")
            parameters = {
                "variant": manifest.name,
                "sha256": manifest.files[spec.file_name].sha256,
                "source": manifest.source.model,
                "sampling_rate": str(artifact.geometry.sampling_rate),
                "frame_size": str(spec.frame_size),
            }
            (folder / model / "config.pbtxt").write_text(config(model, spec, options, parameters), encoding="utf-8")
        shutil.copyfile(artifact.path / MANIFEST_NAME, folder / MARKER)
        here = Path(__file__).parent
        shutil.copyfile(here / "triton_client.py", folder / "client.py")
        page = Template((here / "triton.md").read_text(encoding="utf-8"))
        values = {"name": name, "streams": options.streams, "rows": options.rows, "idle": options.idle_seconds}
        (folder / "README.md").write_text(page.substitute(values), encoding="utf-8")
    return list(models)


def config(name: str, spec: GraphSpec, options: TritonOptions, parameters: dict[str, str]) -> str:
    """The text of `config.pbtxt` for the graph `spec`; `parameters` are for clients, Triton passes them on."""
    own = {"intra_op_thread_count": str(options.threads), "inter_op_thread_count": "1"}
    if options.instances > 1:
        own["share_session_between_instances"] = "true"  # one copy of the weights
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {options.rows}",
        *_tensor("input", spec.data_input),
        *(line for tensor in spec.data_outputs for line in _tensor("output", tensor)),
        "sequence_batching {",
        f"  max_sequence_idle_microseconds: {options.idle_seconds * 1_000_000}",
        "  oldest {",
        f"    max_candidate_sequences: {options.streams}",
        f"    preferred_batch_size: [ {options.rows} ]",
        f"    max_queue_delay_microseconds: {options.delay_ms * 1000}",
        "  }",
        *(line for state in spec.states for line in _state(state)),
        "}",
        f"instance_group [ {{ kind: KIND_CPU count: {options.instances} }} ]",
        "version_policy { latest { num_versions: 1 } }",
        *(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            for key, value in (own | parameters).items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(word: str, tensor: TensorSpec) -> Iterator[str]:
    yield f'{word} [ {{ name: "{tensor.name}" data_type: {TYPES[tensor.dtype]} dims: {_dims(tensor)} }} ]'


def _state(state: StateSpec) -> Iterator[str]:
    kind = f"data_type: {TYPES[state.dtype]} dims: {_dims(state.past)}"
    yield "  state {"
    yield f'    input_name: "{state.past.name}"'
    yield f'    output_name: "{state.present.name}"'
    yield f"    {kind}"
    yield f'    initial_state {{ name: "zeros" {kind} zero_data: true }}'
    yield "  }"


def _dims(tensor: TensorSpec) -> str:
    """All dimensions but the rows; -1 for the number of codebooks, which a decoder's client chooses."""
    return f"[ {', '.join('-1' if isinstance(dim, str) else str(dim) for dim in tensor.shape[1:])} ]"


def _quoted(text: str) -> str:
    """A text in protobuf's form, whatever it holds."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'
