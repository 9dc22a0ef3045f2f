"""A graph beside the one that this program traces anew from the same checkpoint and options: node by node.

Situations see what a graph does where they bring it; a node that waits for something else (a sample of 0.7, a call of
9 frames) is seen here, whatever it waits for. The other way round, what the exporter itself does wrong stands in both
graphs, and only situations and clips see that.

Every value is known by what computes it: operator, attributes, inputs; weights by their names (`audit` looks at their
numbers), other constants by their numbers. So names and order of nodes are no matter.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import torch

from mimi_export.contract.directory import Artifact
from mimi_export.contract.manifest import Manifest
from mimi_export.contract.precision import PRECISIONS
from mimi_export.contract.spec import GraphKind, GraphSpec
from mimi_export.export.convert import names_of, rewrite_graph
from mimi_export.export.precision import weight_forms
from mimi_export.export.trace import onnx_program
from mimi_export.export.variant import finish, tool_versions
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import StreamingGraph, streaming_graph
from mimi_export.parity.audit import load_model
from mimi_export.parity.metrics import Array
from mimi_export.parity.results import VariantReport
from mimi_export.parity.stored import SCALES, constants
from mimi_export.passes.rounding import Rounded
from mimi_export.passes.taps import TAP_PREFIX


class Tracer:
    """Traces the graphs of one checkpoint anew in a process of its own, each once; use it in a `with` statement."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._traced: dict[GraphSpec, Future[bytes]] = {}

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, artifact: Artifact) -> None:
        """Trace both graphs of a variant while something else is done, if the same tools are here."""
        if other_tools(artifact.manifest):
            return
        for graph in artifact.manifest.specs.values():
            if graph not in self._traced:
                self._traced[graph] = self._pool.submit(trace_anew, streaming_graph(self._checkpoint, graph))

    def judge(self, artifact: Artifact, report: VariantReport) -> None:
        """Note where both graphs of a variant that was begun part from those traced anew, or why that is not known."""
        if other := other_tools(artifact.manifest):
            report.skipped.append(f"the graphs node by node: they were traced by {other}")
            return
        found = report.faults["structure_faults"] = []
        for kind, graph in artifact.manifest.specs.items():
            traced = onnx.ModelProto.FromString(self._traced[graph].result())
            found += structure_faults(artifact, kind, load_model(artifact, kind), traced)


def other_tools(manifest: Manifest) -> str:
    """Which versions traced a variant, where they are not those installed: they may write it in other nodes."""
    here = tool_versions()
    pairs = ((tool, made, here.get(tool)) for tool, made in manifest.tools.items())
    return ", ".join(f"{tool} {made}, here {now}" for tool, made, now in pairs if made != now)


def trace_anew(module: StreamingGraph) -> bytes:
    """The float32 graph of a module as `export` writes it."""
    torch.set_num_threads(1)
    model = onnx_program(module)
    finish(model, module.graph, {})
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def structure_faults(artifact: Artifact, kind: GraphKind, model: onnx.ModelProto, traced: onnx.ModelProto) -> list[str]:
    """The first node of a file's graph that is not in the graph traced anew, and what it leads to."""
    weights = {name for name in constants(traced) if "." in name}  # the others are the tracer's own
    wanted = _converted(artifact.manifest, kind, traced, constants(model))
    right = _keys(wanted, weights, {})
    found = _keys(model, weights, constants(wanted))
    expected = set(right.values())
    first = next((node for node in model.graph.node if found[node.output[0]] not in expected), None)
    shown = (name for node in model.graph.node for name in node.output if name.startswith(TAP_PREFIX))
    wrong = [name.removeprefix(TAP_PREFIX) for name in shown if found[name] not in expected]
    wrong += [value.name for value in model.graph.output if found.get(value.name) != right.get(value.name)]
    if first is None and not wrong:
        return []
    node = f"node {first.name or first.output[0]} ({first.op_type})" if first else "outputs that changed places"
    return [f"{kind}: parts from the graph traced anew on the way to {wrong[0] if wrong else 'nowhere'}, by {node}"]


def _converted(
    manifest: Manifest, kind: GraphKind, traced: onnx.ModelProto, arrays: Mapping[str, Array]
) -> onnx.ModelProto:
    """The traced graph after the passes that a manifest records, with the integers that the file stores."""
    if manifest.precision not in PRECISIONS:
        return traced
    record = next((record for record in manifest.conversion if "precision" in record), {})
    make = PRECISIONS[manifest.precision]
    given = {name: record[name] for name in ("keep_float", "round_codebooks") if name in record}
    model = ir.from_proto(traced)
    forms = weight_forms(model, kind, make(**given))
    empty = np.zeros(0, np.float32)
    integers = names_of(forms, "int8")
    codes = {name: Rounded(arrays.get(name, empty), arrays.get(name + SCALES, empty)) for name in integers}
    return ir.to_proto(rewrite_graph(model, kind, forms, codes).model)


def _keys(model: onnx.ModelProto, weights: Collection[str], known: Mapping[str, Array]) -> dict[str, int]:
    """What each value of a graph is, as a hash; a constant near to one of `known` counts as that."""
    keys: dict[str, int] = {"": 0}
    for name, array in constants(model).items():
        stem = name.removesuffix(SCALES)
        keys[name] = hash(name) if stem in weights else _number_key(array, known)
    keys |= {value.name: hash(("input", value.name)) for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in keys:
            continue
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        inputs = [keys[name] for name in node.input]
        for index, name in enumerate(node.output):
            keys[name] = hash((node.domain, node.op_type, *attributes, *inputs, index))
    return keys


def _number_key(array: Array, known: Mapping[str, Array]) -> int:
    """Tables of angles come from a power and a division, which processors round differently."""
    for other in known.values():
        if (other.dtype, other.shape) == (array.dtype, array.shape) and np.allclose(array, other, rtol=1e-6, atol=0):
            array = other
            break
    return hash((str(array.dtype), array.shape, array.tobytes()))
