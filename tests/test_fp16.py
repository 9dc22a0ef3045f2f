"""Weight-only float16: the pass on graphs of a few lines, then a whole variant against its fp32 parent."""

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers import snr

from mimi_export.errors import GraphError
from mimi_export.passes.fp16_weights import FLOAT16_MAX, HalfWeights, to_half

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[N, 3] x, int64[M] rows) => (float[N, 2] y, float[M, 2] e)
<float[3, 2] weight = {1.1, 2, 3, 4, 5, 6}, float[4, 2] table = {1.3, 2, 3, 4, 5, 6, 7, 8}, float[2] bias = {0.1, 0.2}>
{
   p = MatMul (x, weight)
   y = Add (p, bias)
   e = Gather (table, rows)
}
"""


def graph(text=TEXT, **weights):
    model = ir.from_onnx_text(text)
    for name, array in weights.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.asarray(array, np.float32), name=name)
    return model


def run(model, **feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
ROWS = np.array([3, 0, 0], np.int64)


def convert(model=None, names=("weight", "table", "shown")):
    return HalfWeights(names)(model or graph())


def test_weights_are_halved_and_values_widened():
    result = convert()
    stored = {name: value.dtype for name, value in result.model.graph.initializers.items()}
    assert stored == {"weight": ir.DataType.FLOAT16, "table": ir.DataType.FLOAT16, "bias": ir.DataType.FLOAT}
    halves = {name: result.model.graph.initializers[name].const_value.numpy() for name in ("weight", "table")}
    y, e = run(result.model, x=X, rows=ROWS)
    np.testing.assert_allclose(y, X @ halves["weight"].astype(np.float32) + [0.1, 0.2], rtol=1e-6)  # float32 sums
    np.testing.assert_array_equal(e, halves["table"].astype(np.float32)[ROWS])
    assert y.dtype == e.dtype == np.float32
    assert result.underflows == {"weight": 0, "table": 0}
    assert result.modified


def test_a_table_is_widened_after_its_rows_are_taken():
    model = convert().model
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.inputs[0].dtype == ir.DataType.FLOAT16
    assert [use.node.op_type for use in gather.outputs[0].uses()] == ["Cast"]


def test_input_is_left_as_it_was():
    model = graph()
    before = ir.to_proto(model).SerializeToString()
    convert(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_inputs_and_outputs_stay():
    before, after = graph(), convert().model
    for old, new in ((before.graph.inputs, after.graph.inputs), (before.graph.outputs, after.graph.outputs)):
        assert [(value.name, value.dtype, value.shape) for value in old] == [
            (value.name, value.dtype, value.shape) for value in new
        ]


def test_second_run_is_refused():
    with pytest.raises(ir.passes.PreconditionError, match=r"weight is float16 already.*convert its fp32 parent"):
        convert(convert().model)


def test_other_weights_are_left():
    model = convert(names=["table"]).model
    assert model.graph.initializers["weight"].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["table"].dtype == ir.DataType.FLOAT16
    assert not convert(names=[]).modified


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_overflow_names_the_weight(value):
    with pytest.raises(GraphError, match=r"the weight weight reaches .*65504"):
        convert(graph(weight=[[1, 2], [value, 4], [5, 6]]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_names_the_weight(value):
    with pytest.raises(GraphError, match="table holds 1 values that are not finite"):
        convert(graph(table=[[1, 2], [3, 4], [5, 6], [7, value]]))


def test_largest_and_underflow_are_counted():
    values = np.array([FLOAT16_MAX, 65519, -(2.0**-24), 2.0**-26, -1e-30, 0], np.float32)
    assert to_half("w", values).tolist() == [FLOAT16_MAX, FLOAT16_MAX, -(2.0**-24), 0, -0.0, 0]
    assert convert(graph(weight=values.reshape(3, 2))).underflows["weight"] == 2


def test_every_float16_and_what_lies_between_is_rounded_as_numpy_does():
    """The library that rounds would lift small values and clamp large ones, silently, by default."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = np.linspace(halves[:-1], halves[1:], 5, dtype=np.float32).ravel()
    values = np.concatenate(
        [halves, between, np.nextafter(between, np.float32(0)), [np.nextafter(np.float32(65520), 0)]]
    )
    values = np.concatenate([values, -values]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = to_half("w", values)
    np.testing.assert_array_equal(half.view(np.uint16), values.astype(np.float16).view(np.uint16))


OVERRIDABLE = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[3] x, float[3] weight) => (float[3] y, float[3] shown)
<float[3] weight = {1.1, 2, 3}, float[3] shown = {4, 5, 6}>
{
   y = Add (x, weight)
}
"""


def test_weights_that_a_client_sees_are_left():
    result = convert(graph(OVERRIDABLE))
    assert not result.modified


UNKNOWN = """
<ir_version: 10, opset_import: ["" : 20, "my.domain" : 1]>
agraph (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] weight = {1.1, 2, 3, 4, 5, 6}>
{
   p = my.domain.Twist <strength: int = 3> (x, weight)
   y = Relu (p)
}
"""


def test_unknown_operators_get_the_float32_they_had():
    model = convert(graph(UNKNOWN)).model
    twist = next(node for node in model.graph if node.op_type == "Twist")
    assert twist.domain == "my.domain"
    assert twist.attributes["strength"].as_int() == 3
    assert twist.inputs[1].dtype == ir.DataType.FLOAT
    assert twist.inputs[1].producer().op_type == "Cast"
    onnx.checker.check_model(ir.to_proto(model))


NESTED = """
<ir_version: 10, opset_import: ["" : 20]>
agraph (float[N, 3] x, bool flag) => (float[N, 2] y)
<float[3, 2] weight = {1.1, 2, 3, 4, 5, 6}>
{
   y = If (flag) <
      then_branch = one () => (float[N, 2] a) { a = MatMul (x, weight) },
      else_branch = two () => (float[N, 2] b) { t = MatMul (x, weight)
                                               b = Neg (t) }
   >
}
"""


def test_readers_in_nested_graphs_are_served():
    model = convert(graph(NESTED)).model
    half = model.graph.initializers["weight"].const_value.numpy().astype(np.float32)
    for flag, sign in ((True, 1), (False, -1)):
        (y,) = run(model, x=X, flag=np.array(flag))
        np.testing.assert_allclose(y, sign * (X @ half), rtol=1e-6)


def test_half_precision_is_measurable():
    """2**-12 of a value is the greatest rounding: 66 dB at least, and a variant that was not converted has no error."""
    values = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
    assert 66 < snr(values, to_half("w", values).astype(np.float32)) < 80
