"""The golden clip: what fp32 graphs give, kept beside every variant, so that a variant can be checked anywhere.

`golden.safetensors` in a variant directory holds

    audio     int16 [N]         a few seconds of generated sound, full scale 32768
    codes     int32 [K, T]      what the fp32 encoder made of it, frame by frame
    decoded   float32 [T·F]     what the fp32 decoder made of these codes, frame by frame

An export records its own graphs; a conversion takes the clip of the variant that it was made from. So a variant is
judged by what it should compute and not by what it computed on the machine that made it. Replaying needs numpy and
onnxruntime. The files' hashes say that the graphs are the same; this says that they compute here what they should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors.numpy import save

from mimi_export.contract.directory import Artifact, load_artifact, load_batch
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.recipes import ExportRecipe, find_recipe
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind
from mimi_export.errors import ArtifactError
from mimi_export.media.signals import speech_like
from mimi_export.runtime.graph_file import check_graph_file
from mimi_export.runtime.integers import check_artifact
from mimi_export.runtime.replay import GOLDEN_NAME, cause, read_golden, read_tensors, run_calls, samples_of, snr_db
from mimi_export.runtime.session import GraphSession

SECONDS = 3.0
SEED = 7
RECORDED_FROM = "recorded_from"  # key of the file's metadata: the name of the variant whose graphs were run
# By precision: fraction of codes that must be equal, and SNR in dB of the decoded audio, where no recipe says more.
# fp32 leaves 110 dB between processors; the codes' margin is for near ties, which take later levels with them. fp16
# leaves 60 dB, int8 33 and more; 8-bit products that saturate leave 9 dB and 17 % of the codes.
TOLERANCES = {"fp32": (0.97, 80.0), "fp16": (0.9, 50.0), "int8": (0.5, 20.0)}
SLACK_DB = 3.0  # a recipe's budget is for longer clips than this one

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GoldenResult:
    """How a replay compares: fraction of equal codes and SNR in dB, each with the least that is accepted.

    `recorded_from` is the variant that the clip is from; `None` for a clip of an older program, which ran the variant's
    own graphs where it was made.
    """

    frames: int
    codes_equal: float
    codes_least: float
    snr_db: float
    snr_least: float
    recorded_from: str | None = None

    @property
    def passed(self) -> bool:
        """Whether both are good enough."""
        return self.codes_equal >= self.codes_least and self.snr_db >= self.snr_least

    @property
    def level(self) -> str:
        """The SNR in words."""
        if math.isfinite(self.snr_db):
            return f"{self.snr_db:.1f} dB"
        return "exact" if self.snr_db > 0 else "lost"

    def missed(self, manifest: Manifest) -> str:
        """What is wrong, in which file, and what it comes from; for a result that has not passed."""
        wrong = []
        if not self.codes_equal >= self.codes_least:
            equal, least = f"{100 * self.codes_equal:.2f} %", f"{100 * self.codes_least:g} %"
            wrong.append(f"{manifest.spec('encoder').file_name} gives {equal} of the golden codes (wanted {least})")
        if not self.snr_db >= self.snr_least:
            wanted = f"(wanted {self.snr_least:g} dB)"
            wrong.append(f"{manifest.spec('decoder').file_name} gives the golden audio at {self.level} {wanted}")
        return f"does not compute here what it should: {' and '.join(wrong)}; {cause(manifest)}"


def write_golden(directory: Path, manifest: Manifest) -> None:
    """Run the fp32 graphs in `directory` over the golden clip and keep the result there; call it before the manifest.

    Raises:
        GraphError: a graph does not load or fails.
    """
    (directory / GOLDEN_NAME).write_bytes(save(_record(directory, manifest), {RECORDED_FROM: manifest.name}))


def _record(directory: Path, manifest: Manifest) -> dict[str, Array]:
    geometry = manifest.geometry
    encoder, decoder = manifest.spec("encoder"), manifest.spec("decoder")
    unit = geometry.frame_size * (manifest.shape.frames_per_call or 1)
    seconds = max(1, round(SECONDS * geometry.sampling_rate / unit)) * unit / geometry.sampling_rate
    sound = speech_like(seconds, SEED, geometry.sampling_rate)
    audio = np.rint(sound * 32767).astype(np.int16)
    codes = run_calls(GraphSession(directory / encoder.file_name, encoder), samples_of(audio), geometry.frame_size)
    decoded = run_calls(GraphSession(directory / decoder.file_name, decoder), codes, 1)
    return {"audio": audio, "codes": codes[0].astype(np.int32), "decoded": decoded[0, 0]}


def copy_golden(parent: Artifact, directory: Path) -> None:
    """Give a conversion the golden clip of the fp32 variant that it is made from.

    Raises:
        ArtifactError: the parent's clip is damaged.
        GraphError: the parent has none, and its graphs do not load or fail.
    """
    if GOLDEN_NAME in parent.manifest.files and _recorded_from(parent) is not None:
        read_golden(parent)
        (directory / GOLDEN_NAME).write_bytes((parent.path / GOLDEN_NAME).read_bytes())
        return
    tensors = _record(parent.path, parent.manifest)
    (directory / GOLDEN_NAME).write_bytes(save(tensors, {RECORDED_FROM: parent.manifest.name}))


def replay_golden(artifact: Artifact) -> GoldenResult:
    """Run a variant over its golden clip, after a proof that its integer products are the same on every processor.

    The shape of every state is compared with the contract after every call.

    Raises:
        ArtifactError: there is no golden clip, it does not fit the variant, or this precision is not known.
        GraphError: a graph does not load, fails, hands on a state of another shape than it should, or has integer
            products that saturate on some processors.
    """
    manifest, geometry = artifact.manifest, artifact.geometry
    golden = read_golden(artifact)
    codes_least, snr_least = least(manifest)
    if manifest.precision == "int8":
        check_artifact(artifact)
    audio, expected, decoded = golden["audio"], golden["codes"].astype(np.int64), golden["decoded"]
    codes = run_calls(_session(artifact, "encoder"), samples_of(audio), geometry.frame_size)
    found = run_calls(_session(artifact, "decoder"), expected[None], 1)
    equal = float((codes[0] == expected).mean())
    level = snr_db(decoded, found[0, 0])
    return GoldenResult(expected.shape[1], equal, codes_least, level, snr_least, _recorded_from(artifact))


def least(manifest: Manifest) -> tuple[float, float]:
    """Fraction of codes and SNR in dB that a variant must reach: its recipe's budget where there is a recipe.

    Raises:
        ArtifactError: the precision is not known.
        ConfigError: the recipes cannot be read.
    """
    if manifest.precision not in TOLERANCES:
        known = ", ".join(TOLERANCES)
        raise ArtifactError(f"{manifest.name} has precision {manifest.precision!r}, known are {known}")
    codes, level = TOLERANCES[manifest.precision]
    recipe = None if manifest.precision == "fp32" else find_recipe(manifest.name)
    if recipe is None or isinstance(recipe.recipe, ExportRecipe):
        return codes, level
    budgets = [b.minimum for b in recipe.budgets if b.metric == "decoder_snr_db" and b.minimum is not None]
    return codes, max([level, *(minimum - SLACK_DB for minimum in budgets)])


def verify_variant(directory: Path) -> None:
    """Check a variant directory as `mimi-export verify` does; one without a golden clip runs one call.

    Raises:
        ArtifactError: a file is missing or changed, or a graph does not load, run or give what it should.
    """
    artifact = load_artifact(directory, verify_hashes=True)
    manifest = artifact.manifest
    if GOLDEN_NAME in manifest.files:
        result = replay_golden(artifact)
        if not result.passed:
            raise ArtifactError(f"{manifest.name} {result.missed(manifest)}")
        return
    samples = np.zeros((1, 1, artifact.geometry.frame_size * (manifest.shape.frames_per_call or 1)), np.float32)
    codes = run_calls(_session(artifact, "encoder"), samples, artifact.geometry.frame_size)
    audio = run_calls(_session(artifact, "decoder"), codes, 1)
    if audio.shape != samples.shape or not np.isfinite(audio).all():
        raise ArtifactError(f"{manifest.name} gives {list(codes.shape)} codes and audio of shape {list(audio.shape)}")


def verify_batch(directory: Path) -> None:
    """Check a directory for whole clips: hashes, and a clip of one sample more than a frame through every data type.

    Raises:
        ArtifactError: a file is missing or changed, or a graph does not load, run or give what it should.
    """
    manifest = load_batch(directory, verify_hashes=True)
    samples = np.zeros((1, 1, manifest.frame_size + 1), np.float32)
    for dtype, files in manifest.dtypes.items():
        data = samples
        for kind in GRAPH_KINDS:
            session = ort.InferenceSession(str(directory / files[kind]), providers=["CPUExecutionProvider"])
            data = session.run(None, {session.get_inputs()[0].name: data})[0]
        if data.shape != (1, 1, 2 * manifest.frame_size) or not np.isfinite(data).all():
            raise ArtifactError(f"{manifest.name} {dtype} gives audio of shape {list(data.shape)}")


def _session(artifact: Artifact, kind: GraphKind) -> GraphSession:
    check_graph_file(artifact.graph_path(kind))
    return GraphSession(artifact.graph_path(kind), artifact.spec(kind))


def _recorded_from(artifact: Artifact) -> str | None:
    return read_tensors(artifact.path / GOLDEN_NAME)[1].get(RECORDED_FROM)
