"""8-bit passes on graphs of a few lines, the rounding of weights, and what the operators make of both."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers import snr

from mimi_export.passes.int8_codebooks import RoundedCodebooks
from mimi_export.passes.int8_dynamic import DynamicMatmuls
from mimi_export.passes.rewriting import find_matmuls
from mimi_export.passes.rounding import round_groups

HEAD = '<ir_version: 10, opset_import: ["" : 20, "my.domain" : 1]>\n'
RNG = np.random.default_rng(5)
WEIGHT = RNG.standard_normal((70, 24)).astype(np.float32)
X = RNG.standard_normal((2, 5, 70)).astype(np.float32)


def graph(body, **weights):
    declared = ", ".join(
        f"float[{','.join(map(str, array.shape))}] {name} = {{{', '.join(['0'] * array.size)}}}"
        for name, array in weights.items()
    )
    model = ir.from_onnx_text(HEAD + body.replace("WEIGHTS", f"<{declared}>"))
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def product(**weights):
    return graph(
        "g (float[B, T, 70] x) => (float[B, T, 24] y) WEIGHTS { p = MatMul (x, w)\n y = Add (p, bias) }",
        **{"w": WEIGHT, "bias": np.arange(24, dtype=np.float32), **weights},
    )


def run(model, optimize=True, **feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def op_types(model):
    return [node.op_type for node in model.graph]


TRUTH = X @ WEIGHT + np.arange(24)
PASSES = {
    "signed": (lambda: DynamicMatmuls(["w"]), 36),
    "unsigned": (lambda: DynamicMatmuls(["w"], unsigned=True), 36),
    "fine": (lambda: DynamicMatmuls(["w"], fine=["w"], unsigned=True), 40),
}


@pytest.mark.parametrize("name", PASSES)
def test_products_are_near(name):
    """Decibels: a weight has 8 bits (about 45 dB for normal weights), activations have 8 bits per tensor.

    The input is left as it was, names of values stay, a second run is refused.
    """
    make, decibels = PASSES[name]
    model = product()
    before = ir.to_proto(model).SerializeToString()
    result = make()(model)
    assert result.modified
    assert ir.to_proto(model).SerializeToString() == before
    for optimize in (True, False):
        (y,) = run(result.model, optimize, x=X)
        assert snr(TRUTH, y) > decibels
        assert snr(TRUTH, y) < 60, "nothing was rounded"
    names = {str(value.name) for node in result.model.graph for value in (*node.inputs, *node.outputs) if value}
    assert {"x", "p", "y"} <= names
    with pytest.raises(ir.passes.PreconditionError, match=r"already.*convert its fp32 parent"):
        make()(result.model)


def test_fine_activations_leave_only_the_weights_error():
    rounded = round_groups(np.ascontiguousarray(WEIGHT.T)).floats().T
    (y,) = run(DynamicMatmuls(["w"], ["w"], True)(product()).model, x=X)
    (coarse,) = run(DynamicMatmuls(["w"], unsigned=True)(product()).model, x=X)
    exact = X @ rounded + np.arange(24)
    assert snr(exact, y) > 80  # 16 bits of activations: 6 dB a bit
    assert snr(exact, coarse) < 55


def test_one_tensor_is_rounded_once():
    other = RNG.standard_normal((70, 24)).astype(np.float32)
    text = "g (float[N, 70] x) => (float[N, 24] a, float[N, 24] b) WEIGHTS { a = MatMul (x, v)\n b = MatMul (x, w) }"
    model = DynamicMatmuls(["v", "w"], ["w"])(graph(text, v=other, w=WEIGHT)).model
    assert op_types(model).count("DynamicQuantizeLinear") == 1
    assert op_types(model).count("QuantizeLinear") == 2  # coarse and fine for w, by the range that is there
    a, b = run(model, x=X[0])
    assert min(snr(X[0] @ other, a), snr(X[0] @ WEIGHT, b)) > 36


@pytest.mark.parametrize("x", [X * 1e6, X - 3, np.abs(X), -np.abs(X), X * 0, X * 1e-30], ids=str)
def test_fine_activations_of_any_range(x):
    """The middle of the codes is zero, whatever the range: nothing may be out of reach."""
    rounded = round_groups(np.ascontiguousarray(WEIGHT.T)).floats().T
    bias = np.arange(24, dtype=np.float32)
    x = x.astype(np.float32)
    (y,) = run(DynamicMatmuls(["w"], ["w"])(product()).model, x=x)
    step = 2 * float(np.abs(x).max()) / 255 / 255  # of the finer codes, at most
    error = np.abs(y - (x.astype(np.float64) @ rounded + bias)).max()
    assert error <= step * np.abs(rounded).sum(axis=0).max() + 1e-6 * np.abs(y).max()


def test_fine_activations_before_opset_18():
    model = product()
    model.opset_imports[""] = 13
    (y,) = run(DynamicMatmuls(["w"], ["w"])(model).model, x=X)
    assert snr(TRUTH, y) > 40


ENTRIES = RNG.standard_normal((50, 24)).astype(np.float32)
OFFSETS = -(ENTRIES**2).sum(axis=1) / 2


def search(text="score = Gemm <transB: int = 1> (r, books, offsets)\n code = ArgMax <axis: int = 1, keepdims: int = 0>"
           " (score)\n entry = Gather (books, code)\n left = Sub (r, entry)"):  # fmt: skip
    body = f"g (float[N, 24] r) => (float[N, 50] score, float[N, 24] left) WEIGHTS {{ {text} }}"
    return graph(body, books=ENTRIES, offsets=OFFSETS)


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("optimize", [True, False])
def test_codebooks(unsigned, optimize):
    residual = RNG.standard_normal((7, 24)).astype(np.float32)
    result = RoundedCodebooks(["books"], unsigned)(search())
    assert result.modified
    score, left = run(result.model, optimize, r=residual)
    rounded = round_groups(ENTRIES).floats()
    assert 30 < snr(residual @ ENTRIES.T + OFFSETS, score) < 60
    assert snr(residual @ rounded.T - (rounded.astype(np.float64) ** 2).sum(axis=1) / 2, score) > 35
    np.testing.assert_allclose(left, residual - rounded[score.argmax(axis=1)], atol=1e-6)
    stored = [value.const_value for value in result.model.graph.initializers.values()]
    assert sum(tensor.size == ENTRIES.size for tensor in stored) == 1, "entries stand in the file more than once"
    assert not RoundedCodebooks(["books"], unsigned)(result.model).modified


@pytest.mark.parametrize(("offsets", "own"), [(OFFSETS, True), (-OFFSETS, False), (OFFSETS[:1], False)])
def test_rounded_entries_get_offsets_of_their_own(offsets, own):
    text = "score = Gemm <transB: int = 1> (r, books, offsets)\n left = Neg (r)"
    body = f"g (float[N, 24] r) => (float[N, 50] score, float[N, 24] left) WEIGHTS {{ {text} }}"
    result = RoundedCodebooks(["books"])(graph(body, books=ENTRIES, offsets=offsets)).model.graph.initializers[
        "offsets"
    ]
    rounded = round_groups(ENTRIES).floats().astype(np.float64)
    wanted = -(rounded**2).sum(axis=1) / 2 if own else offsets
    np.testing.assert_allclose(result.const_value.numpy(), wanted, rtol=1e-6)
    assert not np.allclose(OFFSETS, -(rounded**2).sum(axis=1) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "score = Gemm <transB: int = 1, alpha: float = 2.0> (r, books, offsets)\n left = Neg (r)",
        "score = Gemm <transB: int = 1> (r, books)\n left = Neg (r)",
        "score = Gemm <transB: int = 1> (r, books, offsets)\n more = MatMul (score, books)\n left = Neg (more)",
        "score = Gemm <transB: int = 1> (r, books, offsets)\n m = ReduceSum (books)\n left = Mul (r, m)",
    ],
)
def test_what_is_no_codebook_is_left(text):
    model = search(text)
    assert not RoundedCodebooks(["books"])(model).modified
    assert not RoundedCodebooks([])(search()).modified


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed):
    matrix = np.ascontiguousarray(WEIGHT.T) if transposed else WEIGHT
    bias = np.arange(24, dtype=np.float32)
    text = f"g (float[N, 70] x) => (float[N, 24] y) WEIGHTS {{ y = Gemm <transB: int = {transposed}> (x, w, bias) }}"
    model = DynamicMatmuls(["w"], unsigned=True)(graph(text, w=matrix, bias=bias)).model
    assert "Gemm" not in op_types(model)
    (y,) = run(model, x=X[0])
    assert snr(TRUTH[0], y) > 36


LEFT = {
    "scaled gemm": "g (float[N, 70] x) => (float[N, 24] y) WEIGHTS { y = Gemm <alpha: float = 2.0> (x, w) }",
    "activations": "g (float[N, 70] x, float[70, 24] v) => (float[N, 24] y) WEIGHTS {"
    " y = MatMul (x, v)\n z = Neg (w) }",
    "weight first": "g (float[24, N] x) => (float[70, N] y) WEIGHTS { y = MatMul (w, x) }",
    "two readers": "g (float[N, 70] x, int64[M] i) => (float[N, 24] y, float[M, 24] z) WEIGHTS {"
    " y = MatMul (x, w)\n z = Gather (w, i) }",
    "unknown": "g (float[N, 70] x) => (float[N, 24] y) WEIGHTS { y = my.domain.MatMul (x, w) }",
    "output": "g (float[N, 70] x) => (float[N, 24] y, float[70, 24] w) WEIGHTS { y = MatMul (x, w) }",
    "input": "g (float[N, 70] x, float[70, 24] w) => (float[N, 24] y) WEIGHTS { y = MatMul (x, w) }",
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_no_plain_product_is_left(case):
    model = graph(LEFT[case], w=WEIGHT)
    assert find_matmuls(model) == {}
    result = DynamicMatmuls(["w"])(model)
    assert not result.modified
    assert op_types(result.model) == op_types(model)
    assert result.model.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_zero_weights_and_zero_activations():
    wanted = np.broadcast_to(np.arange(24, dtype=np.float32), (*X.shape[:2], 24))
    for weight, x in ((np.zeros_like(WEIGHT), X), (WEIGHT, np.zeros_like(X))):
        (y,) = run(DynamicMatmuls(["w"], unsigned=True)(product(w=weight)).model, x=x)
        np.testing.assert_array_equal(y, wanted)


def test_products_fuse(tmp_path):
    """The speed depends on onnxruntime recognising the pattern."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    converted = ir.to_proto(DynamicMatmuls(["w"], unsigned=True)(product()).model).SerializeToString()
    ort.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert left == ["DynamicQuantizeMatMul"]


def test_rounding_is_the_nearest_code():
    groups = RNG.standard_normal((7, 32)).astype(np.float32)
    groups[3] = 0
    rounded = round_groups(groups)
    assert np.abs(rounded.codes).max() == 127
    assert rounded.scales.shape == (7, 1)
    assert rounded.scales[3] == 1
    inside = np.abs(groups) <= 127 * rounded.scales
    steps = np.abs(rounded.floats() - groups) / rounded.scales
    assert steps[inside].max() <= 0.5001


def test_rounding_clips_where_that_is_better():
    group = np.append(RNG.standard_normal(80000), 20.0).astype(np.float32)[None]
    plain = np.rint(group / (20 / 127)) * (20 / 127)
    rounded = round_groups(group)
    assert rounded.scales[0, 0] < 20 / 127
    assert np.square(rounded.floats() - group).sum() < np.square(plain - group).sum()


def test_old_opsets_are_refused():
    model = product()
    model.opset_imports[""] = 10
    with pytest.raises(ir.passes.PreconditionError, match="opset 10, expected 11"):
        DynamicMatmuls(["w"])(model)
