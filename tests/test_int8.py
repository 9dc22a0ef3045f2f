"""8-bit passes on graphs of a few lines, the rounding of weights, and what the operators make of both."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers import snr

from mimi_export.errors import ConfigError
from mimi_export.passes.int8_block import BlockProducts
from mimi_export.passes.int8_codebooks import RoundedCodebooks
from mimi_export.passes.int8_dynamic import DynamicProducts
from mimi_export.passes.int8_products import find_products
from mimi_export.passes.int8_rounding import round_groups
from mimi_export.passes.int8_storage import StoredWeights

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
    "block 16": (lambda: BlockProducts(block_size=16), 38),
    "block 32": (lambda: BlockProducts(block_size=32), 38),
    "block 128": (lambda: BlockProducts(block_size=128), 36),
    "4 bits": (lambda: BlockProducts(block_size=32, bits=4), 18),
    "dynamic": (lambda: DynamicProducts(), 36),
    "dynamic unsigned": (lambda: DynamicProducts(unsigned=True), 36),
    "fine": (lambda: DynamicProducts(fine=["w"], unsigned=True), 40),
    "stored": (lambda: StoredWeights(min_elements=2), 40),
}


@pytest.mark.parametrize("name", PASSES)
def test_products_are_near(name):
    """Decibels: a weight has 8 bits (about 45 dB for normal weights), activations have 8 bits per tensor or block."""
    make, decibels = PASSES[name]
    result = make()(product())
    assert result.modified
    for optimize in (True, False):
        (y,) = run(result.model, optimize, x=X)
        assert snr(TRUTH, y) > decibels
        assert snr(TRUTH, y) < 60, "nothing was rounded"
    (weight,) = result.weights
    assert weight.name == "w"
    times = 4.5 if "4 bits" in name else 2  # a block of 128 for 70 inputs is padded
    assert weight.bytes_after < weight.bytes_before / times


@pytest.mark.parametrize("name", PASSES)
def test_input_is_left_as_it_was(name):
    model = product()
    before = ir.to_proto(model).SerializeToString()
    PASSES[name][0]()(model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("name", PASSES)
def test_second_run_is_refused(name):
    make = PASSES[name][0]
    with pytest.raises(ir.passes.PreconditionError, match=r"already.*convert its fp32 parent"):
        make()(make()(product()).model)


@pytest.mark.parametrize("name", PASSES)
def test_names_of_values_stay(name):
    model = PASSES[name][0]()(product()).model
    assert {"x", "p", "y"} <= {
        str(value.name) for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None
    }


def test_fine_activations_leave_only_the_weights_error():
    rounded = round_groups(np.ascontiguousarray(WEIGHT.T)).floats().T
    (y,) = run(DynamicProducts(fine=["w"], unsigned=True)(product()).model, x=X)
    (coarse,) = run(DynamicProducts(unsigned=True)(product()).model, x=X)
    exact = X @ rounded + np.arange(24)
    assert snr(exact, y) > 80  # 16 bits of activations: 6 dB a bit
    assert snr(exact, coarse) < 55


def test_one_tensor_is_rounded_once():
    other = RNG.standard_normal((70, 24)).astype(np.float32)
    text = "g (float[N, 70] x) => (float[N, 24] a, float[N, 24] b) WEIGHTS { a = MatMul (x, v)\n b = MatMul (x, w) }"
    model = DynamicProducts(fine=["w"])(graph(text, v=other, w=WEIGHT)).model
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
    (y,) = run(DynamicProducts(fine=["w"])(product()).model, x=x)
    step = 2 * float(np.abs(x).max()) / 255 / 255  # of the finer codes, at most
    error = np.abs(y - (x.astype(np.float64) @ rounded + bias)).max()
    assert error <= step * np.abs(rounded).sum(axis=0).max() + 1e-6 * np.abs(y).max()


def test_fine_activations_before_opset_18():
    model = product()
    model.opset_imports[""] = 13
    (y,) = run(DynamicProducts(fine=["w"])(model).model, x=X)
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
    result = RoundedCodebooks(unsigned=unsigned)(search())
    assert result.modified
    score, left = run(result.model, optimize, r=residual)
    rounded = round_groups(ENTRIES).floats()
    assert 30 < snr(residual @ ENTRIES.T + OFFSETS, score) < 60
    assert snr(residual @ rounded.T - (rounded.astype(np.float64) ** 2).sum(axis=1) / 2, score) > 35
    np.testing.assert_allclose(left, residual - rounded[score.argmax(axis=1)], atol=1e-6)
    stored = [value.const_value for value in result.model.graph.initializers.values()]
    assert sum(tensor.size == ENTRIES.size for tensor in stored) == 1, "entries stand in the file more than once"
    assert not RoundedCodebooks(unsigned=unsigned)(result.model).modified


@pytest.mark.parametrize(("offsets", "own"), [(OFFSETS, True), (-OFFSETS, False), (OFFSETS[:1], False)])
def test_rounded_entries_get_offsets_of_their_own(offsets, own):
    text = "score = Gemm <transB: int = 1> (r, books, offsets)\n left = Neg (r)"
    body = f"g (float[N, 24] r) => (float[N, 50] score, float[N, 24] left) WEIGHTS {{ {text} }}"
    result = RoundedCodebooks()(graph(body, books=ENTRIES, offsets=offsets)).model.graph.initializers["offsets"]
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
    assert not RoundedCodebooks()(model).modified
    assert not RoundedCodebooks(keep=["books"])(search()).modified


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("make", [BlockProducts, lambda: DynamicProducts(unsigned=True)])
def test_gemm(transposed, make):
    matrix = np.ascontiguousarray(WEIGHT.T) if transposed else WEIGHT
    bias = np.arange(24, dtype=np.float32)
    text = f"g (float[N, 70] x) => (float[N, 24] y) WEIGHTS {{ y = Gemm <transB: int = {transposed}> (x, w, bias) }}"
    model = make()(graph(text, w=matrix, bias=bias)).model
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


@pytest.mark.parametrize("make", [BlockProducts, DynamicProducts, lambda: StoredWeights(min_elements=2)])
@pytest.mark.parametrize("case", LEFT)
def test_what_is_no_plain_product_is_left(case, make):
    model = graph(LEFT[case], w=WEIGHT)
    result = make()(model)
    assert not result.modified
    assert op_types(result.model) == op_types(model)
    assert result.model.graph.initializers["w"].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("make", [BlockProducts, DynamicProducts])
def test_small_weights_are_left(make):
    assert not make(min_elements=WEIGHT.size + 1)(product()).modified
    assert make(min_elements=WEIGHT.size)(product()).modified


def test_patterns():
    model = product()
    assert [found.name for found in find_products(model, ["w*"])] == ["w"]
    assert find_products(model, ["v*"]) == []
    assert find_products(model, ["*"], ["w"]) == []


CONVS = {
    "Conv": ("<strides: ints = [2]>", (12, 6, 5)),
    "ConvTranspose": ("<strides: ints = [2]>", (6, 12, 5)),
}


@pytest.mark.parametrize("kind", CONVS)
def test_stored_convolutions(kind):
    """Scales lie along the output channels: a loud one must not coarsen a quiet one."""
    attributes, shape = CONVS[kind]
    axis = 0 if kind == "Conv" else 1
    loudness = np.logspace(-3, 3, 12, dtype=np.float32).reshape([12 if i == axis else 1 for i in range(3)])
    weight = RNG.standard_normal(shape).astype(np.float32) * loudness
    model = graph(f"g (float[B, 6, T] x) => (float[B, 12, U] y) WEIGHTS {{ y = {kind} {attributes} (x, w) }}", w=weight)
    x = RNG.standard_normal((2, 6, 21)).astype(np.float32)
    (wanted,) = run(model, x=x)
    result = StoredWeights(min_elements=2)(model)
    assert result.model.graph.initializers["w"].dtype == ir.DataType.INT8
    (y,) = run(result.model, x=x)
    assert min(snr(wanted[:, c], y[:, c]) for c in range(12)) > 38


def test_stored_weights_become_floats_at_load(tmp_path):
    weight = RNG.standard_normal((12, 6, 5)).astype(np.float32)
    model = graph("g (float[B, 6, T] x) => (float[B, 12, U] y) WEIGHTS { y = Conv (x, w) }", w=weight)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    converted = ir.to_proto(StoredWeights(min_elements=2)(model).model).SerializeToString()
    ort.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not left & {"Cast", "Mul", "DequantizeLinear"}


def test_stored_tables_give_rows():
    table = (RNG.standard_normal((50, 24)) * np.logspace(-2, 2, 50)[:, None]).astype(np.float32)
    text = "g (int64[M, N] i) => (float[M, N, 24] y) WEIGHTS { y = Gather (w, i) }"
    rows = np.array([[0, 49, 7], [7, 1, 2]], np.int64)
    model = StoredWeights(min_elements=2)(graph(text, w=table)).model
    (y,) = run(model, i=rows)
    assert y.dtype == np.float32
    for index in np.ndindex(rows.shape):
        assert snr(table[rows[index]], y[index]) > 38


@pytest.mark.parametrize("make", [BlockProducts, lambda: DynamicProducts(unsigned=True)])
def test_zero_weights_and_zero_activations(make):
    (y,) = run(make()(product(w=np.zeros_like(WEIGHT))).model, x=X)
    # MatMulNBits takes back the 128 with a sum of activations that it rounds in another order
    np.testing.assert_allclose(y, np.broadcast_to(np.arange(24, dtype=np.float32), y.shape), atol=1e-3)
    (y,) = run(make()(product()).model, x=np.zeros_like(X))
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(24, dtype=np.float32), y.shape))


def test_products_fuse(tmp_path):
    """The speed depends on onnxruntime recognising the pattern."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    converted = ir.to_proto(DynamicProducts(unsigned=True)(product()).model).SerializeToString()
    ort.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert left == ["DynamicQuantizeMatMul"]


def test_block_products_multiply_integers():
    """At its default level onnxruntime's operator multiplies floats, more slowly than with float weights."""
    (node,) = [node for node in BlockProducts()(product()).model.graph if node.op_type == "MatMulNBits"]
    assert node.attributes["accuracy_level"].as_int() == 4


def test_rows_of_block_products_are_independent():
    model = BlockProducts()(product()).model
    loud = X.copy()
    loud[1] *= 1000
    np.testing.assert_array_equal(run(model, x=X)[0][0], run(model, x=loud)[0][0])


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_the_nearest_code(bits):
    groups = RNG.standard_normal((7, 3, 32)).astype(np.float32)
    rounded = round_groups(groups, bits)
    top = 2 ** (bits - 1) - 1
    assert np.abs(rounded.codes).max() == top
    assert rounded.scales.shape == (7, 3, 1)
    inside = np.abs(groups) <= top * rounded.scales
    steps = np.abs(rounded.floats() - groups) / rounded.scales
    assert steps[inside].max() <= 0.5001


def test_rounding_clips_where_that_is_better():
    group = np.append(RNG.standard_normal(8000), 9.0).astype(np.float32)[None]
    plain = np.rint(group / (9 / 7)) * (9 / 7)
    rounded = round_groups(group, 4)
    assert rounded.scales[0, 0] < 9 / 7
    assert np.square(rounded.floats() - group).sum() < np.square(plain - group).sum()


def test_bad_options():
    with pytest.raises(ConfigError, match="block size is 48, expected one of 16"):
        BlockProducts(block_size=48)
    with pytest.raises(ConfigError, match="bits is 5"):
        BlockProducts(bits=5)


def test_old_opsets_are_refused():
    model = product()
    model.opset_imports[""] = 10
    with pytest.raises(ir.passes.PreconditionError, match="opset 10, expected 11"):
        DynamicProducts()(model)
