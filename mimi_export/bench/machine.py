"""What this machine is, and the rate at which it can read weights at most, measured beside the contenders.

A frame reads all weights once, so bytes of weights over this rate is the least time of a frame. The rate is that of the
fastest of several ways in which onnxruntime reads 512 MiB once: two reductions and a matrix times a vector.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
import psutil
from onnx import parser

from mimi_export.runtime.processor import instruction_set, processor_name

_MATRICES = 8  # of 64 MiB each: no cache holds them
_READERS = ("ReduceMax<keepdims = 0>({})", "ReduceSum<keepdims = 0>({})", "MatMul(x, {})")


@dataclass(frozen=True)
class Machine:
    """A machine used with `threads` threads; `instruction_set` is empty where the system does not tell it."""

    processor: str
    instruction_set: str
    cores: int
    memory_bytes: int
    onnxruntime: str
    threads: int
    read_bytes_per_second: float

    def __str__(self) -> str:
        found = f" ({self.instruction_set})" if self.instruction_set else ""
        return f"{self.processor}{found}, {self.cores} cores, onnxruntime {self.onnxruntime}"

    def best(self, other: Machine) -> Machine:
        """The higher rate of two measurements: noise only ever slows."""
        return replace(self, read_bytes_per_second=max(self.read_bytes_per_second, other.read_bytes_per_second))


def measure_machine(threads: int = 1, side: int = 4096, repeats: int = 5) -> Machine:
    """Measure; takes some seconds and 600 MiB.

    Args:
        threads: of every operator.
        side: of the matrices that are read; small for tests, where nothing is measured but that it works.
        repeats: the best of so many counts.
    """
    rng = np.random.default_rng(0)
    arrays = {f"w{index}": rng.random((side, side), np.float32) for index in range(_MATRICES)}
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    values["x"] = ort.OrtValue.ortvalue_from_numpy(rng.random((1, side), np.float32))
    runs = [_reader(reader, values, side, threads) for reader in _READERS]
    seconds = min(min(timeit.repeat(run, number=1, repeat=1 + repeats)) for run in runs)  # the first one warms up
    return Machine(
        processor=processor_name(),
        instruction_set=instruction_set(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        onnxruntime=ort.__version__,
        threads=threads,
        read_bytes_per_second=sum(array.nbytes for array in arrays.values()) / seconds,
    )


def _reader(reader: str, values: dict[str, ort.OrtValue], side: int, threads: int) -> Callable[[], object]:
    """A run that reads all matrices once, as inputs, so that nothing is packed or copied before."""
    matrices = [name for name in values if name != "x"]
    inputs = ", ".join(f"float[{'1' if name == 'x' else side}, {side}] {name}" for name in values)
    outputs = ", ".join(f"float{f'[1, {side}]' if 'x' in reader.split('(')[1] else '[]'} y_{name}" for name in matrices)
    nodes = "\n".join(f"y_{name} = {reader.format(name)}" for name in matrices)
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> read ({inputs}) => ({outputs}) {{ {nodes} }}')
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in matrices:
        binding.bind_output(f"y_{name}")
    return lambda: session.run_with_iobinding(binding)
