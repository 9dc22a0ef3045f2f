"""Run a variant's graphs as streams beside batch PyTorch, and measure how far they are apart.

Every clip goes through the files as they are, one frame a call, by the same runtime that users have. The first clip
goes through them in other ways to call, too. All sums run along, so memory does not grow with the clip but for a few
numbers a frame.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime

from mimi_export.contract.directory import Artifact, load_artifact
from mimi_export.contract.progress import Progress
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import ArtifactError
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.parity.clips import Clip
from mimi_export.parity.depth import FRAMES_PER_CALL
from mimi_export.parity.examine import compare_latents, read_files, run_situations
from mimi_export.parity.explain import agreement
from mimi_export.parity.metrics import Array, Audio, AudioComparison, Comparison, Difference
from mimi_export.parity.reference import Piece, Reference, ReferenceClip, decoder_input, wanted_codebooks
from mimi_export.parity.results import DRIFT_SECONDS, ClipResult, Excerpt, Timeline, Timing, VariantReport
from mimi_export.parity.ties import Agreement, judge_codes
from mimi_export.runtime import Codec, DecoderStream
from mimi_export.runtime.integers import check_artifact
from mimi_export.runtime.session import provider_name
from mimi_export.runtime.stream import SampleStream

MIXED = (1, 4, 2, 7, 3, 1, 1, 13)
EXCERPT_SECONDS = 12.0

Verdict = npt.NDArray[np.uint8]
logger = logging.getLogger(__name__)


def measure(
    variant: Artifact | str | os.PathLike[str],
    checkpoint: Checkpoint,
    clips: Sequence[Clip],
    frames_per_call: Sequence[int | str] = FRAMES_PER_CALL,
    progress: Progress = logger.info,
    reference: Reference | None = None,
    situations: bool = True,
    provider: str = "cpu",
) -> VariantReport:
    """Measure one variant.

    Args:
        variant: a variant directory.
        checkpoint: the model that it was made from.
        clips: what to listen to, the most important first: only it is tried in every way to call.
        frames_per_call: ways to call: a number of frames, or `mixed`. Graphs of fixed frames have one way.
        progress: told of each step.
        reference: shares the computed references between variants; by default one is made for this call.
        situations: whether to try what no clip brings, and to compare states.
        provider: what computes the graphs.

    Raises:
        ArtifactError: the directory is no variant, a graph does not load or fails, or the model has other sizes.
        AudioError: a clip cannot be read.
    """
    artifact = variant if isinstance(variant, Artifact) else load_artifact(variant)
    if artifact.manifest.precision == "int8":
        check_artifact(artifact)
    if artifact.geometry != checkpoint.geometry:
        raise ArtifactError(
            f"{artifact.path} was exported from {artifact.manifest.source.model}, whose sizes are not those of "
            f"{checkpoint.source}; name its model with --reference"
        )
    if reference is None:
        with Reference(checkpoint, wanted_codebooks([artifact.manifest.shape]), progress) as own:
            return Measurement(artifact, own, progress, provider).run(clips, frames_per_call, situations)
    return Measurement(artifact, reference, progress, provider).run(clips, frames_per_call, situations)


class Measurement:
    """One variant beside a reference."""

    def __init__(self, artifact: Artifact, reference: Reference, progress: Progress, provider: str = "cpu") -> None:
        self.artifact, self.manifest, self.geometry = artifact, artifact.manifest, artifact.geometry
        self.reference, self._told, self.provider = reference, progress, provider_name(provider)
        self.codec = Codec(artifact, providers=(provider,))
        self._progress("files and weights")
        self.files = read_files(artifact, reference.checkpoint)
        self.shape = artifact.manifest.shape

    def run(self, clips: Sequence[Clip], frames_per_call: Sequence[int | str], situations: bool) -> VariantReport:
        """Measure clips, the first one in every way to call; see `measure`."""
        manifest, fixed = self.manifest, self.shape.frames_per_call
        ways = [fixed] if fixed else list(frames_per_call)
        report = VariantReport(manifest.name, str(self.artifact.path), manifest, faults=self.files.faults)
        report.tools = _machine(manifest.tools, self.provider)
        for clip in clips:
            truth = self.reference.clip(clip)
            self._progress(f"{clip.name}, {ways[0]} frame(s) a call")
            run = _Run(self, truth)
            result = run.whole(ways[0])
            result.latents = compare_latents(self.files, truth, result, self.provider)
            if not report.clips:
                for way in ways[1:]:
                    self._progress(f"{clip.name}, {way} frame(s) a call")
                    run.again(way)
                report.timing = run.timing()
                if situations:
                    report.states = {kind: self._states(truth, kind, run.states[kind]) for kind in self.shape.kinds}
                    self._progress("situations that no clip brings")
                    report.outcomes = run_situations(self.files, self.reference, truth, self.provider)
            result.drift = result.timeline.drift(round(DRIFT_SECONDS * self.geometry.frame_rate))
            report.clips.append(result)
        return report

    def _progress(self, step: str) -> None:
        self._told(f"{self.manifest.name}: {step}")

    def _states(self, truth: ReferenceClip, kind: GraphKind, found: Mapping[str, Array]) -> dict[str, float]:
        right = self.reference.states(truth, self.artifact.spec(kind))
        return {name: agreement(right[name], found[name]) for name in right}


class _Run:
    """One clip through both graphs of a variant, in one way to call after the other; see `ClipNumbers`."""

    def __init__(self, measurement: Measurement, truth: ReferenceClip) -> None:
        self._m, self._truth = measurement, truth
        self._seconds: dict[GraphKind, list[float]] = {"encoder": [], "decoder": []}
        self._codes: dict[str, Agreement] = {}
        self._decoder_calls: dict[str, Difference] = {}
        self._latent_calls: dict[str, Difference] = {}
        self.states: dict[GraphKind, Mapping[str, Array]] = {}

    def whole(self, way: int | str) -> ClipResult:
        """Everything but the latents that a graph does not give; the result gets what `again` finds, too."""
        m, truth, rate = self._m, self._truth, self._m.geometry.sampling_rate
        decoded, end_to_end = (AudioComparison(rate, m.geometry.frame_size) for _ in range(2))
        verdicts, excerpt, left = [], [], round(EXCERPT_SECONDS * rate)
        for call, verdict, right, audio, heard in self._stream(way, end_to_end=True):
            verdicts.append(verdict)
            decoded.push(right, audio)
            end_to_end.push(right, heard)
            if left > 0:
                excerpt.append([signal[:left].copy() for signal in (call.samples, right, heard)])
                left -= len(call.samples)
        energies = {"decoder": decoded.energies.arrays(), "end_to_end": end_to_end.energies.arrays()}
        return ClipResult(
            name=truth.clip.name,
            stress=truth.clip.stress,
            num_samples=truth.num_samples,
            num_frames=truth.num_frames,
            codes=self._codes,
            decoder_calls=self._decoder_calls,
            latents=None,
            decoder=decoded.finish(),
            end_to_end=end_to_end.finish(),
            latent_calls=self._latent_calls,
            first_seconds={"decoder": decoded.first.difference, "end_to_end": end_to_end.first.difference},
            timeline=Timeline(energies if "decoder" in m.shape.kinds else {}, np.concatenate(verdicts, axis=1)),
            excerpt=Excerpt(*(np.concatenate(parts) for parts in zip(*excerpt, strict=True))),
        )

    def again(self, way: int | str) -> None:
        """The same clip in another way to call: only what the encoder gives, and the decoder's audio."""
        for _ in self._stream(way, end_to_end=False):
            pass

    def timing(self) -> dict[GraphKind, Timing]:
        """Milliseconds a frame of the calls in `whole`, without the first ten calls where there are more."""
        found: dict[GraphKind, Timing] = {}
        for kind in self._m.shape.kinds:
            kept = 1000 * np.array(self._seconds[kind][10:] or self._seconds[kind])
            found[kind] = Timing(float(np.median(kept)), float(np.percentile(kept, 95)))
        return found

    def _stream(self, way: int | str, end_to_end: bool) -> Iterator[tuple[Piece, Verdict, Audio, Audio, Audio]]:
        """For each call: its reference, the verdict on its codes, right audio, audio of the right and of the own codes.

        As long as all codes are the reference's, the last two are one stream; it is forked at the first difference. A
        decoder that takes latents gets those; without a decoder all audio is empty.
        """
        codec, shape, frame_size = self._m.codec, self._m.shape, self._m.geometry.frame_size
        rows = shape.rows or 1  # all the same, and the first one counts
        encoder: SampleStream = codec.encoder.stream(rows) if shape.num_codebooks else codec.encoder.latents(rows)
        decoder = codec.decoder.stream(rows) if "decoder" in shape.kinds else None
        fork: DecoderStream | None = None
        counts, decoded, given = Agreement(), Comparison(), Comparison()
        wanted = audio = heard = np.zeros(0, np.float32)
        done = 0
        for call in self._truth.calls(MIXED if way == "mixed" else [int(way)]):
            frames = call.codes.shape[1]
            done += frames
            last = done == self._truth.num_frames
            samples = np.tile(call.samples, (rows, 1))
            begin = time.perf_counter()
            parts = [encoder.encode(samples)]
            if last:
                parts.append(encoder.finish()[0])
            middle = time.perf_counter()
            codes = np.concatenate([part.codes for part in parts], axis=2)[0]
            latents = np.concatenate([part.latents for part in parts], axis=1)[0]
            verdict = judge_codes(self._m.reference.quantizers, call.latents, call.codes[: shape.num_codebooks], codes)
            counts.push(verdict)
            if latents.size:
                given.push(call.latents.T, latents)
            if decoder is not None:
                own, right = codes if shape.decoded_codebooks else latents, decoder_input(call, shape)
                if end_to_end and fork is None and not np.array_equal(own, right):
                    fork = codec.decoder.stream(rows)
                    fork.restore(decoder.snapshot())
                before = time.perf_counter()
                wanted, audio = call.audio[shape.decoded_codebooks or 0], _decode(decoder, right, last)
                after = time.perf_counter()
                self._seconds["decoder"] += [(after - before) / frames] if end_to_end else []
                heard = audio if fork is None else _decode(fork, own, last)
            self._seconds["encoder"] += [(middle - begin) / frames] if end_to_end else []
            audio, heard = audio[: frames * frame_size], heard[: frames * frame_size]
            decoded.push(wanted, audio)
            yield call, verdict, wanted, audio, heard
        self._codes[str(way)], self._decoder_calls[str(way)] = counts, decoded.difference
        if shape.head != "codes":
            self._latent_calls[str(way)] = given.difference
        if end_to_end:
            self.states = {"encoder": encoder.snapshot().states}
            self.states |= {"decoder": decoder.snapshot().states} if decoder else {}


def _decode(stream: DecoderStream, data: Array, last: bool) -> Audio:
    audio = stream.push(np.repeat(data[None], stream.batch, axis=0))[0]
    return np.concatenate([audio, stream.flush()[0]]) if last else audio


def _machine(tools: Mapping[str, str], provider: str) -> dict[str, str]:
    """What the numbers depend on beside the files: versions, and the kind of processor or what computed instead."""
    return {
        **tools,
        **({} if provider == "CPUExecutionProvider" else {"provider": provider}),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
