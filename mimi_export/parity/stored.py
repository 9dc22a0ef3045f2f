"""The weights that a graph file stores, as the numbers they stand for, whatever form they are stored in.

    float32, float16     themselves
    int8                 code · scale, with a scale for each output: `NAME.scales`

Names are those of the step functions' weights (`streaming_graph(…).state_dict()`); passes keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from mimi_export.contract.spec import GraphSpec
from mimi_export.model.checkpoint import Checkpoint
from mimi_export.model.graphs import StreamingGraph, streaming_graph
from mimi_export.parity.metrics import Array
from mimi_export.parity.ties import ResidualQuantizer

SCALES = ".scales"


@dataclass(frozen=True)
class StoredWeight:
    """One weight: `values` float32, and for integers the `codes` and the `steps` between two of them."""

    dtype: str
    values: Array
    codes: Array | None = None
    steps: Array | None = None


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Every initializer, and every tensor of a `Constant` node by its output."""
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                found[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
    return found


def stored_weights(arrays: Mapping[str, Array], names: Mapping[str, Any]) -> dict[str, StoredWeight]:
    """Those of `arrays` that are called as in `names`."""
    return {name: _weight(name, arrays) for name in names if name in arrays}


def integers(weights: Mapping[str, StoredWeight]) -> set[str]:
    """The names of those that are stored as integers, whose products round their activations."""
    return {name for name, weight in weights.items() if weight.codes is not None}


def step_functions(
    checkpoint: Checkpoint, graph: GraphSpec, weights: Mapping[str, StoredWeight] | None = None
) -> StreamingGraph:
    """The step functions of a graph, with the checkpoint's weights or, by name, those that a file stores."""
    module = streaming_graph(checkpoint, graph)
    if weights:
        own = module.state_dict()
        fitting = {name: w.values for name, w in weights.items() if w.values.shape == tuple(own[name].shape)}
        module.load_state_dict(own | {name: torch.from_numpy(values.copy()) for name, values in fitting.items()})
    return module


def stored_quantizers(weights: Mapping[str, StoredWeight]) -> list[ResidualQuantizer]:
    """The residual quantisers that an encoder's file stores, in float64; none where it lacks a codebook."""
    found = []
    for half in ("semantic", "acoustic"):
        levels = sum(name.startswith(f"{half}.codebooks.") for name in weights)
        names = [f"{half}.codebooks.{level}" for level in range(levels)]
        if not all(name in weights for name in names):
            return []
        books = [weights[name].values.astype(np.float64) for name in names]
        projection = weights.get(f"{half}.projection")
        if books:
            matrix = None if projection is None else projection.values.T.astype(np.float64)
            found.append(ResidualQuantizer(matrix, books))
    return found


def _weight(name: str, arrays: Mapping[str, Array]) -> StoredWeight:
    array, scales = arrays[name], arrays.get(name + SCALES)
    dtype = str(array.dtype)
    book = ".codebooks." in name
    if dtype != "int8" or scales is None or scales.shape != (array.shape[:1] if book else array.shape[1:]):
        return StoredWeight(dtype, array if array.dtype == np.int64 else array.astype(np.float32))
    steps = np.broadcast_to(scales[:, None] if book else scales, array.shape)
    return StoredWeight(dtype, array * steps, array, steps)
