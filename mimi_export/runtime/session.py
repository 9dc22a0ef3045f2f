"""An ONNX Runtime session of one graph, checked against the definition of its inputs and outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from mimi_export.contract.spec import GraphSpec, TensorSpec
from mimi_export.errors import ConfigError, GraphError

_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class GraphSession:
    """A loaded graph.

    One thread by default: a frame is bound by reading weights, and a second thread that spins for work doubles the
    processor time for little speed.

    Args:
        path: the `.onnx` file.
        spec: the inputs and outputs it must have.
        threads: threads for one operator; 0 lets onnxruntime take all cores.
        providers: execution providers in order of preference.

    Raises:
        GraphError: the file is missing, is no ONNX graph, is damaged, or has other inputs and outputs.
        ConfigError: a provider is not in the installed onnxruntime.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: GraphSpec,
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.path = Path(path)
        self.spec = spec
        self.device = "cuda" if providers and providers[0] == "CUDAExecutionProvider" else "cpu"
        unknown = [name for name in providers if name not in ort.get_available_providers()]
        if unknown:
            raise ConfigError(
                f"onnxruntime has no {', '.join(unknown)} here; it offers {', '.join(ort.get_available_providers())}"
            )
        self.session = _open(self.path, threads, providers)
        _check("input", spec.inputs, self.session.get_inputs(), self.path)
        _check("output", spec.outputs, self.session.get_outputs(), self.path)

    def run(self, binding: ort.IOBinding, data: npt.NDArray[Any]) -> None:
        """Run what is bound; a `GraphError` of onnxruntime's refusal names the kind and shape of `data`."""
        try:
            self.session.run_with_iobinding(binding)
        except _ort_errors() as error:
            raise GraphError(f"{self.path} failed on {data.dtype} {list(data.shape)}: {_line(error)}") from error


def _open(path: Path, threads: int, providers: Sequence[str]) -> ort.InferenceSession:
    if not path.is_file():
        raise GraphError(f"there is no graph {path}; export it with `mimi-export export`")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except _ort_errors() as error:
        raise GraphError(f"{path} does not load in onnxruntime {ort.__version__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _ort_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: classes of its own that only its extension module names, and `RuntimeError`."""
    state = ort.capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError)


def _check(word: str, wanted: Sequence[TensorSpec], found: Sequence[Any], path: Path) -> None:
    """Compare names, order, types, ranks and fixed dimensions."""
    names, got = [tensor.name for tensor in wanted], [tensor.name for tensor in found]
    if names != got:
        place = next((i for i, pair in enumerate(zip(names, got, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            what = f" has {len(got)} {word}s, expected {len(names)}"
        else:
            what = f": {word} {place} is {got[place]!r}, expected {names[place]!r}"
        raise GraphError(f"{path}{what}; it is no graph of this variant")
    for spec, tensor in zip(wanted, found, strict=True):
        fits = len(spec.shape) == len(tensor.shape) and all(
            isinstance(dim, str) or dim == real for dim, real in zip(spec.shape, tensor.shape, strict=True)
        )
        if not fits or tensor.type != _TYPES[spec.dtype]:
            raise GraphError(
                f"{path}: {word} {spec.name!r} is {tensor.type} {list(tensor.shape)}, "
                f"expected {_TYPES[spec.dtype]} {list(spec.shape)}"
            )
