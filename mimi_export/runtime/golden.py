"""The golden clip: what fp32 graphs give, kept beside every variant, so that a variant can be checked anywhere.

`golden.safetensors` in a variant directory holds

    audio     int16 [N]         a few seconds of generated sound, full scale 32768
    codes     int32 [K, T]      what the fp32 encoder made of it, frame by frame: codes, latents or both
    latents   float32 [T, H]
    decoded   float32 [T·F]     what the fp32 decoder made of these codes or latents, frame by frame

An export records its own graphs; a conversion takes the clip of the variant that it was made from. So a variant is
judged by what it should compute and not by what it computed on the machine that made it. Replaying needs numpy and
onnxruntime. The files' hashes say that the graphs are the same; this says that they compute here what they should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from mimi_export.runtime.replay import GOLDEN_NAME, cause, check_rate, read_golden, read_tensors, run_clip, snr_db
from mimi_export.runtime.session import GraphSession
from mimi_export.runtime.state import Array

SECONDS = 3.0
SEED = 7
RECORDED_FROM = "recorded_from"  # key of the file's metadata: the name of the variant whose graphs were run
# By precision: fraction of codes that must be equal, and SNR in dB of the decoded audio, where no recipe says more.
# fp32 leaves 110 dB between processors; the codes' margin is for near ties, which take later levels with them. fp16
# leaves 60 dB, int8 33 and more; 8-bit products that saturate leave 9 dB and 17 % of the codes.
TOLERANCES = {"fp32": (0.97, 80.0), "fp16": (0.9, 50.0), "int8": (0.5, 20.0)}
SLACK_DB = 3.0  # a recipe's budget is for longer clips than this one


@dataclass(frozen=True)
class GoldenResult:
    """How a replay compares: fraction of equal codes and SNR in dB, each with the least that is accepted.

    `snr_db` is of the decoded audio, `latents_db` of latents; what the variant does not give is `None`.
    `recorded_from` is the variant that the clip is from; `None` for a clip of an older program, which ran the variant's
    own graphs where it was made.
    """

    frames: int
    codes_equal: float | None
    codes_least: float
    snr_db: float | None
    snr_least: float
    recorded_from: str | None = None
    latents_db: float | None = None

    @property
    def passed(self) -> bool:
        """Whether all are good enough."""
        return not self._faults

    @property
    def _faults(self) -> list[tuple[GraphKind, str]]:
        """What is not good enough, and the graph that gives it."""
        faults: list[tuple[GraphKind, str]] = []
        if self.codes_equal is not None and not self.codes_equal >= self.codes_least:
            equal, least = f"{100 * self.codes_equal:.2f} %", f"{100 * self.codes_least:g} %"
            faults.append(("encoder", f"{equal} of the golden codes (wanted {least})"))
        graphs: list[tuple[GraphKind, str, float | None]] = [
            ("encoder", "latents", self.latents_db),
            ("decoder", "audio", self.snr_db),
        ]
        for kind, what, found in graphs:
            if found is not None and not found >= self.snr_least:
                faults.append((kind, f"the golden {what} at {level(found)} (wanted {self.snr_least:g} dB)"))
        return faults

    def missed(self, manifest: Manifest) -> str:
        """What is wrong, in which file, and what it comes from; for a result that has not passed."""
        wrong = [f"{manifest.spec(kind).file_name} gives {what}" for kind, what in self._faults]
        return f"does not compute here what it should: {' and '.join(wrong)}; {cause(manifest)}"


def level(value: float) -> str:
    """An SNR in words."""
    if math.isfinite(value):
        return f"{value:.1f} dB"
    return "exact" if value > 0 else "lost"


def write_golden(directory: Path, manifest: Manifest) -> None:
    """Run the fp32 graphs in `directory` over the golden clip and keep the result there; call it before the manifest.

    Raises:
        GraphError: a graph does not load or fails.
    """
    (directory / GOLDEN_NAME).write_bytes(_record(Artifact(directory, manifest)))


def copy_golden(parent: Artifact, directory: Path) -> None:
    """Give a conversion the golden clip of the fp32 variant that it is made from.

    Raises:
        ArtifactError: the parent's clip is damaged.
        GraphError: the parent has none, and its graphs do not load or fail.
    """
    if GOLDEN_NAME in parent.manifest.files and _recorded_from(parent) is not None:
        read_golden(parent)
        content = (parent.path / GOLDEN_NAME).read_bytes()
    else:
        content = _record(parent)
    (directory / GOLDEN_NAME).write_bytes(content)


def _record(artifact: Artifact) -> bytes:
    rate, unit = artifact.geometry.sampling_rate, _call_size(artifact)
    seconds = max(1, round(SECONDS * rate / unit)) * unit / rate
    clip = {"audio": np.rint(speech_like(seconds, SEED, rate) * 32767).astype(np.int16)}
    return save(clip | _replay(artifact, clip), {RECORDED_FROM: artifact.manifest.name})


def replay_golden(artifact: Artifact, provider: str = "cpu") -> GoldenResult:
    """Run a variant over its golden clip, after a proof that its integer products are the same on every processor.

    The shape of every state is compared with the contract after every call.

    Raises:
        ArtifactError: there is no golden clip, it does not fit the variant, or this precision is not known.
        GraphError: a graph does not load, fails, hands on a state of another shape than it should, or has integer
            products that saturate on some processors.
    """
    manifest, golden = artifact.manifest, read_golden(artifact)
    codes_least, snr_least = least(manifest)
    if manifest.precision == "int8":
        check_artifact(artifact)
    found = _replay(artifact, golden, provider)
    levels = {name: snr_db(golden[name], found[name]) for name in ("latents", "decoded") if name in found}
    equal = float((found["codes"] == golden["codes"]).mean()) if "codes" in found else None
    frames = len(golden["audio"]) // artifact.geometry.frame_size
    audio_db, latents_db = levels.get("decoded"), levels.get("latents")
    return GoldenResult(frames, equal, codes_least, audio_db, snr_least, _recorded_from(artifact), latents_db)


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
    samples = np.zeros(_call_size(artifact), np.int16)
    audio = _replay(artifact, {"audio": samples}).get("decoded", samples)
    if audio.shape != samples.shape or not np.isfinite(audio).all():
        raise ArtifactError(f"{manifest.name} gives audio of shape {list(audio.shape)}")


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


def _replay(artifact: Artifact, clip: dict[str, Array], provider: str = "cpu") -> dict[str, Array]:
    """What the graphs make of a clip; the decoder goes on from the encoder where the clip has nothing for it."""
    found: dict[str, Array] = {}
    for kind in artifact.manifest.shape.kinds:
        path = artifact.graph_path(kind)
        check_graph_file(path)
        graph = GraphSession(path, artifact.spec(kind), providers=(provider,))
        check_rate(artifact, graph)
        found |= run_clip(graph, found | clip)
    return found


def _call_size(artifact: Artifact) -> int:
    """Samples of the shortest call."""
    return artifact.geometry.frame_size * (artifact.manifest.shape.frames_per_call or 1)


def _recorded_from(artifact: Artifact) -> str | None:
    return read_tensors(artifact.path / GOLDEN_NAME)[1].get(RECORDED_FROM)
