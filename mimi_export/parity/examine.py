"""What is looked at beside what clips sound like: the files, latents, and situations that no clip brings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimi_export.contract.directory import Artifact
from mimi_export.contract.spec import LATENTS, GraphKind
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.parity.audit import audit_files, audit_weights, load_model
from mimi_export.parity.explain import Lockstep, TappedGraph
from mimi_export.parity.metrics import Comparison, Difference, Energies
from mimi_export.parity.reference import Reference, ReferenceClip, decoder_input, graph_input
from mimi_export.parity.results import ClipResult, Outcome
from mimi_export.parity.situations import CALL_SIZES, Examiner, full_window, situations, turning_steps
from mimi_export.parity.stored import (
    StoredWeight,
    constants,
    integers,
    step_functions,
    stored_quantizers,
    stored_weights,
)
from mimi_export.parity.ties import LATENTS_DB, Agreement, ResidualQuantizer, judge_codes, search

COARSE_DB = 35.0  # how exactly a graph knows what it quantises by activations of 8 bits, which leave 41 dB
LATENT_FRAMES = 4  # frames a call where latents are looked at; any number does


@dataclass
class Files:
    """What the files of a variant store, and their `faults`: lines by metric, each beginning with the place.

    `quantizers` are those of the encoder, `projected_db` how exactly it knows what they quantise.
    """

    artifact: Artifact
    faults: dict[str, list[str]]
    weights: dict[GraphKind, dict[str, StoredWeight]]
    steps: dict[GraphKind, list[int]]
    quantizers: list[ResidualQuantizer]
    projected_db: float


def read_files(artifact: Artifact, checkpoint: Checkpoint) -> Files:
    """Read and audit the graphs; `GraphError` where one is no ONNX file."""
    models = {kind: load_model(artifact, kind) for kind in artifact.manifest.shape.kinds}
    faults: dict[str, list[str]] = {"file_faults": audit_files(artifact, models), "weight_faults": []}
    weights, steps = {}, {}
    for kind, model in models.items():
        module = step_functions(checkpoint, artifact.spec(kind))
        faults["weight_faults"] += audit_weights(artifact, kind, model, module)
        arrays = constants(model)
        weights[kind] = stored_weights(arrays, module.state_dict())
        steps[kind] = turning_steps(arrays, artifact.geometry)
    encoder = weights["encoder"]
    coarse = any(".codebooks." in name or name.endswith(".projection") for name in integers(encoder))
    projected_db = COARSE_DB if coarse else LATENTS_DB
    return Files(artifact, faults, weights, steps, stored_quantizers(encoder), projected_db)


def compare_latents(files: Files, truth: ReferenceClip, result: ClipResult, provider: str = "cpu") -> Difference | None:
    """Compare the latents inside the encoder, where the file still names them; notes energies per frame.

    No graph gives them, so a session of its own shows them. Beside them, the codes are compared with an exact search of
    the graph's own latents in its own codebooks.
    """
    artifact, shape = files.artifact, files.artifact.manifest.shape
    graph = TappedGraph(artifact.graph_path("encoder"), artifact.spec("encoder"), only=(LATENTS,), provider=provider)
    if not graph.taps and shape.head == "codes":
        return None
    states, comparison, energies, searched = graph.initial_states(), Comparison(), Energies(), Agreement()
    for call in truth.calls([shape.frames_per_call or LATENT_FRAMES]):
        shown, states = graph.step(graph_input(call, graph.spec), states)
        frames = call.codes.shape[1]
        latents = shown[LATENTS][0, :frames].T
        if files.quantizers:
            codes = shown["audio_codes"][0, :, :frames]
            nearest = search(files.quantizers, latents, shape.num_codebooks)
            searched.push(judge_codes(files.quantizers, latents, nearest, codes, files.projected_db))
        comparison.push(call.latents, latents)
        energies.push(call.latents.T, latents.T)
    result.timeline.energies["latents"] = energies.arrays()
    result.searched = searched if searched.codes else None
    return comparison.difference


def run_situations(files: Files, reference: Reference, truth: ReferenceClip, provider: str = "cpu") -> list[Outcome]:
    """All graphs in all `situations`; data and states come from a clip."""
    artifact = files.artifact
    found: list[Outcome] = []
    for kind, graph in artifact.manifest.specs.items():
        tapped = TappedGraph(artifact.graph_path(kind), graph, provider=provider)
        module = step_functions(reference.checkpoint, graph, files.weights[kind])
        rounded = integers(files.weights[kind])
        examiner = Examiner(
            Lockstep(tapped, module, rounded=[w for name, w in module.named_parameters() if name in rounded]),
            files.quantizers if kind == "encoder" else [],
            files.projected_db,
            files.steps[kind],
        )
        frames = graph.shape.frames_per_call or max(CALL_SIZES)
        call = next(truth.calls([frames]))
        rows = call.samples[None] if kind == "encoder" else decoder_input(call, graph.shape)
        axis = graph.data_input.time_axis - 1
        data = np.take(rows, np.arange(frames * graph.unit) % rows.shape[axis], axis)[None]  # short ones repeat
        full = full_window(reference.states(truth, graph), artifact.geometry)
        fresh = {name: array[:1] for name, array in tapped.initial_states().items()}
        found += examiner.run(situations(graph, artifact.geometry, data, full, fresh))
    return found
