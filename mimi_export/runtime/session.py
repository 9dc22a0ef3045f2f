"""An ONNX Runtime session of one graph, checked against the definition of its inputs and outputs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from mimi_export.contract.spec import GraphSpec, TensorSpec
from mimi_export.errors import ConfigError, GraphError
from mimi_export.runtime.huge_pages import huge_pages as collapsed
from mimi_export.runtime.integers import may_saturate
from mimi_export.runtime.prepared import prepare

CPU = ("cpu",)
_SUFFIX = "ExecutionProvider"
# Signed 8-bit weights of other files: where sums of two products would saturate at 16 bits, onnxruntime makes them
# unsigned. On processors with AMX it does so as well, and takes half as long again for a batch of 16.
_UNSIGNED = {"session.x64quantprecision": "1"}
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class GraphSession:
    """A loaded graph.

    One thread by default: a frame is bound by reading weights, and a second thread that spins for work doubles the
    processor time for little speed.

    Args:
        path: the `.onnx` file.
        spec: the inputs and outputs it must have.
        threads: threads for one operator; 0 lets onnxruntime take all cores.
        providers: execution providers in order of preference, `cuda` short for `CUDAExecutionProvider`.
        huge_pages: keep weights in huge pages: faster frames for a slower load, see `huge_pages`.
        prepared: a folder for graphs prepared for this processor, which load faster from the second time on, see
            `prepared`.

    Raises:
        GraphError: the file is missing, is no ONNX graph, is damaged, or has other inputs and outputs.
        ConfigError: a provider is not in the installed onnxruntime, or the first one does not start, or is not the
            processor's where `prepared` is given; huge pages on a system without.
        OutputError: `prepared` cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: GraphSpec,
        threads: int = 1,
        providers: Sequence[str] = CPU,
        huge_pages: bool = False,
        prepared: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.spec = spec
        names = [provider_name(name) for name in providers]
        self.device = "cuda" if names[:1] == ["CUDAExecutionProvider"] else "cpu"
        if prepared is not None and names != ["CPUExecutionProvider"]:
            raise ConfigError(f"prepared graphs are for the provider cpu alone, got {', '.join(names)}; load without")
        with collapsed() if huge_pages else contextlib.nullcontext():
            self.session = _open(self.path, threads, names, None if prepared is None else Path(prepared))
        _check("input", spec.inputs, self.session.get_inputs(), self.path)
        _check("output", spec.outputs, self.session.get_outputs(), self.path)

    def __repr__(self) -> str:
        provider = self.session.get_providers()[0].removesuffix(_SUFFIX)
        return f"<{self.spec.kind} graph {str(self.path)!r} on {provider}>"

    def run(self, binding: ort.IOBinding, data: npt.NDArray[Any]) -> None:
        """Run what is bound; a `GraphError` of onnxruntime's refusal names the kind and shape of `data`."""
        try:
            self.session.run_with_iobinding(binding)
        except ort_errors() as error:
            raise GraphError(f"{self.path} failed on {data.dtype} {list(data.shape)}: {_line(error)}") from error


def _open(path: Path, threads: int, providers: Sequence[str], prepared: Path | None) -> ort.InferenceSession:
    if not path.is_file():
        raise GraphError(f"there is no graph {path}; export it with `mimi-export export`")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        settings = _UNSIGNED if may_saturate(path) else {}
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        if prepared is not None:
            path = prepare(path, prepared, settings)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(path), options, providers=list(providers))
    except ort_errors() as error:
        raise GraphError(f"{path} does not load in onnxruntime {ort.__version__}: {_line(error)}") from error
    if providers:
        check_started(session, providers[0])
    return session


def check_started(session: ort.InferenceSession, provider: str) -> None:
    """`ConfigError` where onnxruntime went on with the processor instead of the provider of this full name."""
    if session.get_providers()[0] != provider:
        raise ConfigError(f"{provider} does not start here, see onnxruntime's log; is its driver installed?")


def provider_name(name: str) -> str:
    """The provider's full name, whether `name` is full or short, in capitals or not; `ConfigError` if not here."""
    offered = ort.get_available_providers()
    for full in offered:
        if name.lower() in (full.lower(), full.removesuffix(_SUFFIX).lower()):
            return str(full)
    raise ConfigError(f"onnxruntime has no {name} here; it offers {', '.join(offered)}")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def ort_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: classes of its own that only its extension module names, and `RuntimeError`."""
    named = vars(ort.capi.onnxruntime_pybind11_state).values()
    return (*(kind for kind in named if isinstance(kind, type) and issubclass(kind, Exception)), RuntimeError)


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
