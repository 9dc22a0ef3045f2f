"""8-bit passes on graphs of a few lines, the rounding of weights, and what the operators make of both."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers import snr

from mimi_export.errors import GraphError
from mimi_export.parity.rounded import RoundedProducts
from mimi_export.passes import feedback
from mimi_export.passes.feedback import Gram, round_with_feedback
from mimi_export.passes.int8_codebooks import RoundedCodebooks
from mimi_export.passes.int8_matmuls import IntegerMatmuls
from mimi_export.passes.rewriting import find_matmuls
from mimi_export.passes.rounding import Rounded, round_columns
from mimi_export.runtime.graph_file import GraphFile
from mimi_export.runtime.integers import check_integers, may_saturate, neighbours

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


def convert(model):
    """Every product of a graph as integers."""
    rounded = {name: round_columns(matmul.matrix()) for name, matmul in find_matmuls(model).items()}
    return IntegerMatmuls(rounded)(model)


TRUTH = X @ WEIGHT + np.arange(24)


def test_products_are_near():
    """Decibels: a weight has 8 bits, about 45 dB for normal weights; the input is left as it was, names stay."""
    model = product()
    before = ir.to_proto(model).SerializeToString()
    result = convert(model)
    assert result.modified
    assert ir.to_proto(model).SerializeToString() == before
    for optimize in (True, False):
        (y,) = run(result.model, optimize, x=X)
        assert 40 < snr(TRUTH, y) < 60
    names = {str(value.name) for node in result.model.graph for value in (*node.inputs, *node.outputs) if value}
    assert {"x", "p", "y"} <= names


def test_a_second_run_is_refused():
    with pytest.raises(ir.passes.PreconditionError, match=r"already.*convert its fp32 parent"):
        IntegerMatmuls({"w": round_columns(WEIGHT)})(convert(product()).model)


@pytest.mark.parametrize("x", [X, X * 1e6, X - 3, np.abs(X), -np.abs(X), X * 0, X * 1e-25], ids=str)
def test_activations_of_any_range_leave_only_the_weights_error(x):
    rounded, bias = round_columns(WEIGHT).floats(), np.arange(24, dtype=np.float32)
    x = x.astype(np.float32)
    (y,) = run(convert(product()).model, x=x)
    step = np.abs(x).max(axis=-1, keepdims=True) / 63 / 126  # of the second rounding
    error = np.abs(y - (x.astype(np.float64) @ rounded + bias))
    assert (error <= 0.51 * step * np.abs(rounded).sum(axis=0) + 1e-6 * np.abs(y).max()).all()


@pytest.mark.parametrize("otherwise", [False, True])
def test_step_functions_round_as_the_operators_do(otherwise):
    """All but the last bits; with the other roundings they are as far apart as two roundings are."""
    weight = torch.from_numpy(round_columns(WEIGHT).floats())
    with RoundedProducts([weight], otherwise):
        got = (torch.from_numpy(X) @ weight).numpy() + np.arange(24)
        alone = torch.from_numpy(X) @ weight.clone()
    agreement = snr(run(convert(product()).model, x=X)[0], got)
    assert 70 < agreement < 100 if otherwise else agreement > 120
    np.testing.assert_allclose(alone.numpy(), X @ weight.numpy(), rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    model = convert(product()).model
    loud = X.copy()
    loud[1] *= 1000
    loud[0, 3:] *= -70
    alone, beside = run(model, x=X[:1, :2])[0], run(model, x=loud)[0]
    np.testing.assert_array_equal(alone[0], beside[0, :2])


def test_one_tensor_is_rounded_once():
    other = RNG.standard_normal((70, 24)).astype(np.float32)
    text = "g (float[N, 70] x) => (float[N, 24] a, float[N, 24] b) WEIGHTS { a = MatMul (x, v)\n b = MatMul (x, w) }"
    model = convert(graph(text, v=other, w=WEIGHT)).model
    assert op_types(model).count("QuantizeLinear") == 2
    a, b = run(model, x=X[0])
    assert min(snr(X[0] @ other, a), snr(X[0] @ WEIGHT, b)) > 40


@pytest.mark.parametrize("inputs", [7, 70, 256])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_are_exact(inputs, sign):
    """The largest activations against the largest weights: integers, and no sum may stop at 16 bits."""
    codes = np.full((inputs, 5), 127, np.int8)
    codes[:, 1], codes[::2, 2], codes[2:, 3] = -127, -127, 0
    weights = Rounded(codes, np.full(5, 63, np.float32))
    text = f"g (float[N, {inputs}] x) => (float[N, 5] y) WEIGHTS {{ y = MatMul (x, w) }}"
    model = IntegerMatmuls({"w": weights})(graph(text, w=np.ones((inputs, 5), np.float32))).model
    x = np.full((6, inputs), sign, np.float32)
    x[1::2, ::2] = -1
    for optimize in (True, False):
        (y,) = run(model, optimize, x=x)
        np.testing.assert_array_equal(y, 63 * (x.astype(np.int64) @ codes.astype(np.int64)))


def saved(model, tmp_path):
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    return path


def test_integers_are_proved(tmp_path):
    weights = Rounded(np.full((70, 24), -127, np.int8), np.ones(24, np.float32))
    path = saved(IntegerMatmuls({"w": weights})(product()).model, tmp_path)
    assert check_integers(path) == 1
    assert not may_saturate(path)
    assert check_integers(saved(RoundedCodebooks(["books"])(search()).model, tmp_path)) == 1
    assert check_integers(saved(product(), tmp_path)) == 0


def change(model, name, value):
    tensor = model.graph.initializers[name].const_value.numpy()
    model.graph.initializers[name].const_value = ir.tensor(np.full_like(tensor, value), name=name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: change(model, "integer_matmuls.middle", 128),
        lambda model: change(model, "integer_matmuls.step", 1 / 127),
        lambda model: change(model, "integer_matmuls.finer_step", 1 / 63 / 253),
        lambda model: next(node for node in model.graph if node.op_type == "Abs").replace_input_with(
            0, model.graph.initializers["bias"]
        ),
    ],
)
def test_activations_that_reach_further_are_refused(tmp_path, damage):
    weights = Rounded(np.full((70, 24), 127, np.int8), np.ones(24, np.float32))
    model = IntegerMatmuls({"w": weights})(product()).model
    damage(model)
    path = saved(model, tmp_path)
    with pytest.raises(GraphError, match=r"two products of w.sums add up to \d+, .* stop at 32767"):
        check_integers(path)
    assert may_saturate(path)


def dynamic(weight):
    """A product whose activations may have all 8 bits."""
    text = "g (float[N, 4] x) => (int32[N, 2] y) <int8[4, 2] w = {0, 0, 0, 0, 0, 0, 0, 0}> {\n"
    text += "q, s, z = DynamicQuantizeLinear (x)\n y = MatMulInteger (q, w, z) }"
    model = ir.from_onnx_text(HEAD + text.replace("int8", str(weight.dtype)))
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    return model


@pytest.mark.parametrize(
    ("column", "fits"),
    [
        ((64, 64, 0, 0), True),
        ((127, 1, 1, 127), True),
        ((1, 127, 127, 1), True),
        ((127, -127, -127, 127), True),
        ((-64, -64, 0, -128), True),
        ((65, 64, 0, 0), False),
        ((0, 0, -65, -64), False),
        ((127, 127, 0, 0), False),
    ],
)
def test_neighbours_decide_where_activations_reach_255(tmp_path, column, fits):
    """Products of inputs 2k and 2k + 1 are added in 16 bits; -128 itself is only reached by files of others."""
    path = saved(dynamic(np.array([column, (1, 2, 3, 4)], np.int8).T), tmp_path)
    assert may_saturate(path), "other weights would"
    if fits:
        assert check_integers(path) == 1
    else:
        with pytest.raises(GraphError, match="convert its fp32 parent again"):
            check_integers(path)


def test_unsigned_weights_never_saturate(tmp_path):
    assert check_integers(saved(dynamic(np.full((4, 2), 255, np.uint8)), tmp_path)) == 1


def test_neighbours():
    assert neighbours(np.array([[3], [4], [100]], np.int8)) == 100  # an odd last input has none beside it
    assert neighbours(np.array([[-3, 9], [4, -9]], np.int8)) == 9


def test_a_file_is_read_as_onnx_reads_it(tmp_path):
    path = saved(convert(product()).model, tmp_path)
    read, wanted = GraphFile(path), onnx.load(path)
    for node in wanted.graph.node:
        found = read.nodes[node.output[0]]
        assert (found.name, found.op_type) == (node.name, node.op_type)
        assert (found.inputs, found.outputs) == (tuple(node.input), tuple(node.output))
    for tensor in wanted.graph.initializer:
        np.testing.assert_array_equal(read.weight(tensor.name), onnx.numpy_helper.to_array(tensor))
    assert read.weight("x") is None


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "graph.onnx"
    for content in (b"", b"no graph at all", path_bytes(tmp_path)[:-100]):
        path.write_bytes(content)
        with pytest.raises(GraphError, match="is no ONNX graph that can be read"):
            GraphFile(path)


def path_bytes(tmp_path):
    return saved(convert(product()).model, tmp_path).read_bytes()


ENTRIES = RNG.standard_normal((50, 24)).astype(np.float32)
OFFSETS = -(ENTRIES**2).sum(axis=1) / 2


def search(text="score = Gemm <transB: int = 1> (r, books, offsets)\n code = ArgMax <axis: int = 1, keepdims: int = 0>"
           " (score)\n entry = Gather (books, code)\n left = Sub (r, entry)"):  # fmt: skip
    body = f"g (float[N, 24] r) => (float[N, 50] score, float[N, 24] left) WEIGHTS {{ {text} }}"
    return graph(body, books=ENTRIES, offsets=OFFSETS)


@pytest.mark.parametrize("optimize", [True, False])
def test_codebooks(optimize):
    residual = RNG.standard_normal((7, 24)).astype(np.float32)
    result = RoundedCodebooks(["books"])(search())
    assert result.modified
    score, left = run(result.model, optimize, r=residual)
    rounded = round_columns(ENTRIES.T).floats().T
    assert 30 < snr(residual @ ENTRIES.T + OFFSETS, score) < 60
    assert snr(residual @ rounded.T - (rounded.astype(np.float64) ** 2).sum(axis=1) / 2, score) > 35
    np.testing.assert_allclose(left, residual - rounded[score.argmax(axis=1)], atol=1e-6)
    stored = [value.const_value for value in result.model.graph.initializers.values()]
    assert sum(tensor.size == ENTRIES.size for tensor in stored) == 1, "entries stand in the file more than once"
    assert not RoundedCodebooks(["books"])(result.model).modified


@pytest.mark.parametrize(("offsets", "own"), [(OFFSETS, True), (-OFFSETS, False), (OFFSETS[:1], False)])
def test_rounded_entries_get_offsets_of_their_own(offsets, own):
    text = "score = Gemm <transB: int = 1> (r, books, offsets)\n left = Neg (r)"
    body = f"g (float[N, 24] r) => (float[N, 50] score, float[N, 24] left) WEIGHTS {{ {text} }}"
    result = RoundedCodebooks(["books"])(graph(body, books=ENTRIES, offsets=offsets)).model.graph.initializers[
        "offsets"
    ]
    rounded = round_columns(ENTRIES.T).floats().T.astype(np.float64)
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
    model = convert(graph(text, w=matrix, bias=bias)).model
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
    result = IntegerMatmuls({"w": round_columns(WEIGHT)})(model)
    assert not result.modified
    assert op_types(result.model) == op_types(model)
    assert result.model.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_zero_weights_and_zero_activations():
    wanted = np.broadcast_to(np.arange(24, dtype=np.float32), (*X.shape[:2], 24))
    for weight, x in ((np.zeros_like(WEIGHT), X), (WEIGHT, np.zeros_like(X))):
        (y,) = run(convert(product(w=weight)).model, x=x)
        np.testing.assert_array_equal(y, wanted)


def test_products_fuse(tmp_path):
    """The speed depends on onnxruntime recognising the pattern."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    converted = ir.to_proto(convert(product()).model).SerializeToString()
    ort.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert left.count("MatMulIntegerToFloat") == 1
    assert left.count("Cast") == 1  # of the scalar one
    assert "MatMulInteger" not in left


def test_rounding_is_the_nearest_code():
    matrix = RNG.standard_normal((32, 7)).astype(np.float32)
    matrix[:, 3] = 0
    rounded = round_columns(matrix)
    assert np.abs(rounded.codes).max() == 127
    assert rounded.scales.shape == (7,)
    assert rounded.scales[3] == 1
    inside = np.abs(matrix) <= 127 * rounded.scales
    steps = np.abs(rounded.floats() - matrix) / rounded.scales
    assert steps[inside].max() <= 0.5001


def test_rounding_clips_where_that_is_better():
    column = np.append(RNG.standard_normal(80000), 20.0).astype(np.float32)[:, None]
    plain = np.rint(column / (20 / 127)) * (20 / 127)
    rounded = round_columns(column)
    assert rounded.scales[0] < 20 / 127
    assert np.square(rounded.floats() - column).sum() < np.square(plain - column).sum()


def correlated(rows, inputs, rng):
    """Activations of few degrees of freedom, as those of a network are."""
    return (rng.standard_normal((rows, inputs // 4)) @ rng.standard_normal((inputs // 4, inputs))).astype(np.float32)


@pytest.mark.parametrize("most_inputs", [4096, 100])
def test_feedback_leaves_less_error(monkeypatch, most_inputs):
    """On activations that it has not seen, of the same kind; also where each half is rounded by itself."""
    monkeypatch.setattr(feedback, "MOST_INPUTS", most_inputs)
    rng = np.random.default_rng(3)
    matrix, x = rng.standard_normal((130, 40)).astype(np.float32), correlated(2000, 130, rng)
    gram = Gram(130)
    for call in np.split(x[:1000], 5):
        gram.push(call[None])
    rounded = round_with_feedback(matrix, gram)
    assert gram.rows == 1000
    assert rounded.codes.dtype == np.int8
    assert np.abs(rounded.codes.astype(int)).max() <= 127
    wanted = x[1000:] @ matrix
    plain, better = (snr(wanted, x[1000:] @ each.floats()) for each in (round_columns(matrix), rounded))
    assert better > plain + (6 if most_inputs == 4096 else 2)
    np.testing.assert_array_equal(round_with_feedback(matrix, gram).codes, rounded.codes)


def test_feedback_without_correlation_is_plain_rounding():
    gram = Gram(70)
    np.testing.assert_array_equal(round_with_feedback(WEIGHT, gram).codes, round_columns(WEIGHT).codes)
    gram.push(np.eye(70, dtype=np.float32))
    np.testing.assert_array_equal(round_with_feedback(WEIGHT, gram).codes, round_columns(WEIGHT).codes)


def test_old_opsets_are_refused():
    model = product()
    model.opset_imports[""] = 17
    with pytest.raises(ir.passes.PreconditionError, match="opset 17, expected 18"):
        convert(model)
