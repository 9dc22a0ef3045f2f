"""What one call of a graph must read and compute, counted from the operators that onnxruntime really runs.

onnxruntime's own profile names every operator after fusion with the shapes of its inputs and the bytes of its
constants. From it:

    weight bytes     constants of all operators, once for each use; of a looked-up table only the rows taken
    state bytes      the states that the call reads
    multiply-adds    of products and convolutions, attention over its past included; of those with integer
                     operands apart

Together with the machine's limits (`machine`) they give the least time that any implementation of these operators
would need: weights cannot be read faster than memory gives them, products not be computed faster than the largest one.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mimi_export.bench.machine import Machine

Feeds = Mapping[str, NDArray[Any]]

_PRODUCTS = frozenset({
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "MatMulNBits", "QLinearMatMul", "QGemm", "MatMulBnb4",
})  # fmt: skip
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}  # input that holds the weights
_INTEGER = frozenset({
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "QLinearMatMul", "QGemm",
    "ConvInteger", "QLinearConv",
})  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one call reads (bytes) and computes (multiply-adds), and how many operators it runs."""

    weight_bytes: int
    state_bytes: int
    float_macs: int
    integer_macs: int
    operators: int

    def bandwidth_ms(self, machine: Machine) -> float:
        """Milliseconds to read the weights once."""
        return self.weight_bytes / machine.read_bytes_per_second * 1e3

    def compute_ms(self, machine: Machine) -> float:
        """Milliseconds to compute all products at the peak rates."""
        return (2e3 * self.float_macs / machine.float_ops_per_second) + (
            2e3 * self.integer_macs / machine.integer_ops_per_second
        )

    def limit_ms(self, machine: Machine) -> float:
        """The larger of the two: no call can be faster."""
        return max(self.bandwidth_ms(machine), self.compute_ms(machine))


def measure_costs(path: str | Path, calls: Sequence[Feeds], states: Sequence[str]) -> list[Cost]:
    """The cost of each of several calls.

    Args:
        path: the graph.
        calls: the inputs of each call by name.
        states: names of the inputs that are states.
    """
    events = _profile(path, calls, {"session.disable_prepacking": "1"})  # a packed constant counts as none
    return [
        count(nodes, sum(feeds[name].nbytes for name in states)) for nodes, feeds in zip(events, calls, strict=True)
    ]


def operator_milliseconds(path: str | Path, feeds: Feeds, calls: int = 8) -> dict[str, float]:
    """Median time of each kind of operator in one call, the slowest first; profiling itself makes all a bit slower."""
    totals = []
    for nodes in _profile(path, [feeds] * (calls + 1), {})[1:]:
        total: Counter[str] = Counter()
        for node in nodes:
            total[node["args"]["op_name"]] += node["dur"]
        totals.append(total)
    names = {name for total in totals for name in total}
    medians = {name: float(np.median([total[name] for total in totals])) / 1e3 for name in names}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def count(nodes: Sequence[Mapping[str, Any]], state_bytes: int) -> Cost:
    """Sum up the node events of one call.

    Args:
        nodes: events of onnxruntime's profile.
        state_bytes: what the states hold.
    """
    weights = float_macs = integer_macs = 0
    for node in nodes:
        arguments = node["args"]
        name = arguments["op_name"]
        constants, output = int(arguments["parameter_size"]), int(arguments["output_size"])
        weights += min(constants, output) if name == "Gather" else constants
        macs = multiply_adds(name, _shapes(arguments["input_type_shape"]), _shapes(arguments["output_type_shape"]))
        if name in _INTEGER:
            integer_macs += macs
        else:
            float_macs += macs
    return Cost(weights, state_bytes, float_macs, integer_macs, len(nodes))


def multiply_adds(operator: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> int:
    """Multiply-adds of one operator; 0 for one that is no product.

    A product `[…, M, K]` times `[K, N]` takes M·K·N, a convolution each output times its window, a transposed one
    each input times its window.
    """
    if operator in _PRODUCTS:
        return math.prod(inputs[0]) * outputs[0][-1]
    if operator in _CONVOLUTIONS:
        return math.prod(outputs[0]) * math.prod(inputs[_CONVOLUTIONS[operator]][1:])
    if operator == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    return 0


def _shapes(entries: Sequence[Mapping[str, list[int]]]) -> list[list[int]]:
    return [shape for entry in entries for shape in entry.values()]


def _profile(path: str | Path, calls: Sequence[Feeds], config: Mapping[str, str]) -> list[list[dict[str, Any]]]:
    """The node events of each call, in order."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        for name, value in config.items():
            options.add_session_config_entry(name, value)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for feeds in calls:
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return [[node for node in nodes if run["ts"] <= node["ts"] < run["ts"] + run["dur"]] for run in runs]
