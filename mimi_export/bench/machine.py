"""What this machine can do at most, measured beside the contenders: bytes read, bytes copied, products computed.

    read             the fastest of several ways to read 512 MiB once (reductions, a matrix times a vector)
    copy             bytes read plus bytes written by a plain copy
    product read     bytes of float32 weights that onnxruntime's own product of two rows (one frame) reads
    float, integer   a large product in float32 and in 8 bits

All through onnxruntime with the given number of threads, but the copy, which is numpy's and has one.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

_SIDE = 4096
_MATRICES = 8  # of 64 MiB each: no cache holds them
_OPSET, _IR = 17, 8


@dataclass(frozen=True)
class Machine:
    """Limits of the machine with `threads` threads: bytes per second and operations (two a multiply-add) per second."""

    processor: str
    cores: int
    memory_bytes: int
    onnxruntime: str
    threads: int
    read_bytes_per_second: float
    copy_bytes_per_second: float
    product_read_bytes_per_second: float
    float_ops_per_second: float
    integer_ops_per_second: float

    def best(self, other: Machine) -> Machine:
        """Each rate the higher of two measurements: noise only ever slows."""
        rates = [field.name for field in fields(self) if field.name.endswith("per_second")]
        better = {name: max(getattr(self, name), getattr(other, name)) for name in rates}
        return Machine(**{**asdict(self), **better})


def measure_machine(threads: int = 1, scale: float = 1.0, repeats: int = 5) -> Machine:
    """Measure; takes some seconds and 1.5 GiB.

    Args:
        threads: of every operator.
        scale: of the sides of all matrices; below 1 for tests, where nothing is measured but that it works.
        repeats: the best of so many counts.
    """
    side = max(64, int(_SIDE * scale))
    rng = np.random.default_rng(0)
    matrices = {f"w{index}": rng.random((side, side), np.float32) for index in range(_MATRICES)}
    size = sum(matrix.nbytes for matrix in matrices.values())
    seconds = {
        name: _fastest(_streaming(name, side, threads, matrices, rng), repeats)
        for name in ("ReduceMax", "ReduceSum", "MatMul")
    }
    target = np.empty((side, side), np.float32)

    def copy() -> None:
        for matrix in matrices.values():
            np.copyto(target, matrix)

    # one target for all: written lines stay in no cache either, and it is not the first use of its pages twice
    copied = 2 * size / _fastest(copy, repeats)
    rows = max(64, side // 8)
    half = [matrices[f"w{index}"] for index in range(_MATRICES // 2)]
    frame = _fastest(_product(2, half, threads, rng), repeats)
    big = _fastest(_product(rows, half[:1], threads, rng), max(2, repeats // 2))
    integers = [rng.integers(-100, 100, (side, side), np.int8)]
    small = _fastest(_product(rows, integers, threads, rng), max(2, repeats // 2))
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=_memory(),
        onnxruntime=ort.__version__,
        threads=threads,
        read_bytes_per_second=size / min(seconds.values()),
        copy_bytes_per_second=copied,
        product_read_bytes_per_second=sum(matrix.nbytes for matrix in half) / frame,
        float_ops_per_second=2 * rows * side * side / big,
        integer_ops_per_second=2 * rows * side * side / small,
    )


def _fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs after one that does not count."""
    run()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def _streaming(
    operator: str, side: int, threads: int, matrices: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> Callable[[], object]:
    """A run that reads all matrices once, as inputs, so that nothing is packed or copied before."""
    vector = operator == "MatMul"
    nodes = [
        helper.make_node(operator, ["x", name], [f"y{name}"])
        if vector
        else helper.make_node(operator, [name], [f"y{name}"], keepdims=0)
        for name in matrices
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in matrices]
    values: dict[str, NDArray[Any]] = dict(matrices)
    if vector:
        inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, side]))
        values["x"] = rng.random((1, side), np.float32)
    outputs = [
        helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, [1, side] if vector else []) for name in matrices
    ]
    return _bound(helper.make_graph(nodes, operator, inputs, outputs), values, threads)


def _product(rows: int, weights: list[NDArray[Any]], threads: int, rng: np.random.Generator) -> Callable[[], object]:
    """A run that multiplies `rows` rows by each of the weights, which are constants and so packed at load."""
    side, integer = weights[0].shape[0], weights[0].dtype == np.int8
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    names = [f"w{index}" for index in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integer else "MatMul", ["x", name], [f"y{name}"]) for name in names],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], [rows, side])],
        [helper.make_tensor_value_info(f"y{name}", kinds[1], [rows, side]) for name in names],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in zip(names, weights, strict=True)],
    )
    x = rng.integers(0, 200, (rows, side), np.uint8) if integer else rng.random((rows, side), np.float32)
    return _bound(graph, {"x": x}, threads)


def _bound(graph: onnx.GraphProto, values: Mapping[str, NDArray[Any]], threads: int) -> Callable[[], object]:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def run() -> object:
        session.run_with_iobinding(binding)
        return held  # the values live as long as the run can be called

    return run


def _processor() -> str:
    """The processor's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
