"""What can be seen in the files of a variant without running them: the interface, the operators, every weight.

A clip uses a few hundred of two thousand codebook entries and hides a scale that is off by 2 % in the rounding of the
rest; here every number is accounted for. Weights are compared with those of the step functions, which take them from
the checkpoint by name:

    float32      bit for bit
    float16      bit for bit with the nearest float16
    int8         the scale of each output as it is computed from its weights, and the nearest code

Where a matrix was rounded with error feedback (its conversion records `rounding`), codes are further off: they depend
on what was heard. Scales do not, even where feedback makes an output of few inputs louder or softer by a hundredth.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from mimi_export.contract.directory import Artifact
from mimi_export.contract.manifest import metadata_props
from mimi_export.contract.spec import GraphKind
from mimi_export.errors import GraphError
from mimi_export.model.graphs import StreamingGraph
from mimi_export.parity.metrics import Array
from mimi_export.parity.stored import SCALES, StoredWeight, constants, stored_weights
from mimi_export.passes.rounding import TOP, column_scales

PRECISIONS = {"fp32": ("float32",), "fp16": ("float32", "float16"), "int8": ("float32", "float16", "int8")}
OLDEST_OPSET = 17  # LayerNormalization
SMALL = 64  # numbers that a constant without a name of its own may have: positions, frequencies of a head's channels
HALF_STEP = 0.505  # half a step, and the rounding of the division
SCALE = 1e-5  # by which a scale may differ from the one computed anew: the order of a sum
OUTLIER = 20.0  # times the median distance: errors that are fed back reach 6 in small matrices
OTHER = 0.25  # of an output's size: further away, its numbers are others

OPERATORS = """
    Abs Add And ArgMax Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Div Equal Exp Expand Gather Gelu
    Gemm Greater GreaterOrEqual Identity LayerNormalization Less LessOrEqual MatMul Max Min Mod Mul Neg Not Or Pad Range
    ReduceSum Reshape ScatterND Shape Sin Slice Softmax Split Squeeze Sub Tile Transpose Unsqueeze Where
"""
INTEGER_OPERATORS = "DequantizeLinear DynamicQuantizeLinear MatMulInteger QuantizeLinear ReduceMax Size"
TARGETS = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL)  # of a Cast


def load_model(artifact: Artifact, kind: GraphKind) -> onnx.ModelProto:
    """A graph file without running it; `GraphError` where it is no ONNX graph."""
    path = artifact.graph_path(kind)
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise GraphError(f"{path} does not load: {str(error).strip().splitlines()[0]}") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise GraphError(f"{path}: {tensor.name} lies in a file of its own, expected everything in {path.name}")
    return model


def audit_files(artifact: Artifact, models: Mapping[GraphKind, onnx.ModelProto]) -> list[str]:
    """What is wrong with the files as files, the first first: each line begins with the place."""
    precision, known = artifact.manifest.precision, ", ".join(PRECISIONS)
    faults = [] if precision in PRECISIONS else [f"manifest: precision {precision!r} is none of {known}"]
    return faults + [fault for kind, model in models.items() for fault in _graph_faults(artifact, kind, model)]


def audit_weights(artifact: Artifact, kind: GraphKind, model: onnx.ModelProto, module: StreamingGraph) -> list[str]:
    """Every number of a file that is not the checkpoint's (which `module` has), weight by weight."""
    arrays = constants(model)
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    weights = stored_weights(arrays, expected)
    parameters = dict(module.named_parameters())
    precision = artifact.manifest.precision
    nearest = all(record.get("rounding", "nearest") == "nearest" for record in artifact.manifest.conversion)

    def fault(name: str) -> str | None:
        if name in weights:
            return _weight_fault(name, weights[name], _offsets(name, expected[name], weights), precision, nearest)
        return "is not in the file" if name in parameters else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets other threads go on
        faults = [f"{name} {found}" for name, found in zip(expected, pool.map(fault, expected), strict=True) if found]
    if precision != "fp32" and all(weight.dtype == "float32" for weight in weights.values()):
        faults.append(f"no weight is stored as {precision}, which the manifest says")
    known = {*expected, *(name + SCALES for name in weights)}
    for name, array in arrays.items():
        large = array.dtype.kind != "i" and array.size > SMALL
        if name not in known and large and not any(np.array_equal(array, w) for w in expected.values()):
            faults.append(f"{name} {list(array.shape)} holds numbers that are no weight of the model")
    return [f"{kind}: {fault}" for fault in faults]


def _weight_fault(name: str, got: StoredWeight, wanted: Array, precision: str, nearest: bool) -> str | None:
    if got.dtype not in (*PRECISIONS.get(precision, ()), "int64"):
        return f"is {got.dtype}, which {precision} has not"
    if got.values.shape != wanted.shape:
        return f"is {list(got.values.shape)}, expected {list(wanted.shape)}"
    if got.codes is not None and got.steps is not None:
        book = ".codebooks." in name
        return _rounding_fault(got.codes, got.steps, wanted, nearest or book, book)
    if got.dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            wanted = wanted.astype(np.float16).astype(np.float32)
    elif ".offsets." in name and precision == "int8":
        wrong = ~np.isclose(got.values, wanted, rtol=1e-5)  # of rounded entries
        return f"is not half the squared length of {_place(wrong)}" if wrong.any() else None
    wrong = got.values != wanted
    if not wrong.any():
        return None
    first = tuple(np.argwhere(wrong)[0])
    values = f"is {got.values[first]:.6g} at {_place(wrong)}, expected {wanted[first]:.6g}"
    return f"{values} ({wrong.sum()} of {wrong.size} differ)"


def _rounding_fault(codes: Array, steps: Array, wanted: Array, nearest: bool, book: bool) -> str | None:
    """Whether integers are the nearest to those of `wanted`, or near; `[in, out]`, of a book `[entries, dim]`."""
    if book:
        codes, steps, wanted = codes.T, steps.T, wanted.T
    factors = steps[0] / column_scales(np.ascontiguousarray(wanted))
    off = ~(np.abs(factors - 1) <= SCALE)
    if off.any():
        index = int(np.argmax(off))
        return f"has the scale of output {index} wrong by a factor of {factors[index]:.3f} ({off.sum()} of {off.size})"
    error = np.clip(wanted / steps, -TOP, TOP).astype(np.float64) - codes
    distance = np.abs(error)
    wrong = distance > (HALF_STEP if nearest else OUTLIER * np.median(distance))
    if wrong.any():
        return f"is {distance[wrong].max():.2f} steps off at {_place(wrong.T if book else wrong)}"
    power = np.maximum(np.square(codes, dtype=np.float64).sum(axis=0), 1)
    spread = np.sqrt(np.square(error).sum(axis=0) / power)
    if not nearest and (spread > OTHER).any():
        return f"has other numbers in output {int(np.argmax(spread))}: {100 * spread.max():.0f} % of its size away"
    return None


def _offsets(name: str, wanted: Array, weights: Mapping[str, StoredWeight]) -> Array:
    """Offsets of rounded codebooks are those of the rounded entries."""
    book = weights.get(name.replace(".offsets.", ".codebooks.")) if ".offsets." in name else None
    if book is None or book.codes is None:
        return wanted
    lengths: Array = (-0.5 * np.square(book.values, dtype=np.float64).sum(axis=1)).astype(np.float32)
    return lengths


def _place(wrong: Array) -> str:
    return str(np.argwhere(wrong)[0].tolist()) if wrong.ndim else "its only number"


def _graph_faults(artifact: Artifact, kind: GraphKind, model: onnx.ModelProto) -> Iterator[str]:
    spec, manifest, graph = artifact.spec(kind), artifact.manifest, model.graph
    for side, tensors, values in (("input", spec.inputs, graph.input), ("output", spec.outputs, graph.output)):
        names, wanted = [value.name for value in values], [tensor.name for tensor in tensors]
        if names != wanted:
            pairs = itertools.zip_longest(names, wanted, fillvalue="nothing")
            index, (got, right) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            yield f"{kind}: {side} {index} is {got}, expected {right}"
            continue
        for tensor, value in zip(tensors, values, strict=True):
            found = [dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            if value.type.tensor_type.elem_type != dtype or found != list(tensor.shape):
                yield f"{kind}: {side} {tensor.name} is {found}, expected {tensor.dtype} {list(tensor.shape)}"
    read = {name for node in graph.node for name in node.input}
    yield from (f"{kind}: input {value.name} is not used" for value in graph.input if value.name not in read)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if set(opsets) - {"", "ai.onnx"} or opsets.get("", opsets.get("ai.onnx", 0)) < OLDEST_OPSET:
        yield f"{kind}: operator sets {opsets}, expected ONNX's own from {OLDEST_OPSET} on and no other"
    props = {prop.key: prop.value for prop in model.metadata_props}
    for key, text in metadata_props(manifest).items():
        if props.get(key) != text:
            yield f"{kind}: metadata {key} is {str(props.get(key))[:60]!r}, the manifest says {text[:60]!r}"
    yield from (f"{kind}: {fault}" for fault in _operator_faults(artifact, model))


def _operator_faults(artifact: Artifact, model: onnx.ModelProto) -> Iterator[str]:
    """Operators, and attributes, that no graph of this kind has."""
    geometry, precision = artifact.geometry, artifact.manifest.precision
    allowed = (OPERATORS + INTEGER_OPERATORS if precision == "int8" else OPERATORS).split()
    counts = Counter(node.op_type for node in model.graph.node)
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        place = f"node {node.name or node.output[0]}"
        if node.domain not in ("", "ai.onnx") or node.op_type not in allowed:
            yield f"{place}: operator {node.domain + '.' if node.domain else ''}{node.op_type} has no place here"
        elif any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            yield f"{place}: {node.op_type} holds a graph of its own"
        elif node.op_type == "LayerNormalization" and not math.isclose(
            attributes.get("epsilon", 1e-5), geometry.norm_eps, rel_tol=1e-6
        ):
            yield f"{place}: epsilon of LayerNormalization is not {geometry.norm_eps:g}"
        elif node.op_type == "Gelu" and attributes.get("approximate", b"none") != b"none":
            yield f"{place}: Gelu is approximated by {attributes['approximate'].decode()}"
        elif node.op_type == "Cast" and attributes["to"] not in TARGETS:
            yield f"{place}: numbers are rounded to {TensorProto.DataType.Name(attributes['to'])}"
        elif node.op_type == "Clip" and len([name for name in node.input[1:] if name]) == 2:
            yield f"{place}: Clip between two bounds"
    for operator, each in (("LayerNormalization", 2), ("Gelu", 1)):
        total = each * geometry.num_hidden_layers
        if counts[operator] != total:
            yield f"{counts[operator]} {operator} nodes, expected {total}"
