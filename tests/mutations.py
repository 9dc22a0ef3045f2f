"""Broken graphs: a finished variant with one defect put into one of its ONNX files, hashes set right again."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from mimi_export.contract.directory import Artifact, load_artifact, write_manifest
from mimi_export.contract.spec import GRAPH_KINDS, GraphKind, GraphSpec
from mimi_export.model.steps.rope import exact_rotation, half_swap, phase_steps

Mutation = Callable[[ir.Model], None]


def broken(variant: Path, target: Path, kind: GraphKind, mutation: Mutation) -> Path:
    """A copy of a variant at `target` with `mutation` applied to one graph; its manifest fits its files."""
    shutil.copytree(variant, target)
    artifact = load_artifact(target)
    path = artifact.graph_path(kind)
    model = ir.load(path)
    mutation(model)
    model.graph.sort()
    path.unlink()
    ir.save(model, path)
    write_manifest(target, artifact.manifest)
    return target


def value(model: ir.Model, name: str) -> ir.Value:
    found = {v.name: v for v in model.graph.inputs}
    found |= {v.name: v for node in model.graph for v in node.outputs}
    return found[name]


def insert(model: ir.Model, op: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
    node = ir.node(op, inputs, attributes=attributes or None)
    node.outputs[0].name = name
    model.graph.append(node)
    return node.outputs[0]


def constant(model: ir.Model, array: np.ndarray, name: str) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    initializer = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(initializer)
    return initializer


def redirect(old: ir.Value, new: ir.Value, *keep: ir.Node) -> None:
    """Let all users of `old` but `keep` read `new`."""
    for use in list(old.uses()):
        if use.node not in keep:
            use.node.replace_input_with(use.idx, new)


def ignore_state(name: str) -> Mutation:
    """The graph multiplies the state that it is given by zero."""

    def mutate(model: ir.Model) -> None:
        past = value(model, f"past_{name}")
        zero = insert(model, "Mul", [past, constant(model, np.zeros(1, np.float32), "mutation_zero")], "mutation")
        redirect(past, zero, zero.producer())

    return mutate


def lose_state(name: str) -> Mutation:
    """The graph hands on zeros."""

    def mutate(model: ir.Model) -> None:
        present = value(model, f"present_{name}")
        present.name = f"mutation_{name}"
        factor = constant(model, np.zeros(1, np.float32), "mutation_zero")
        zero = insert(model, "Mul", [present, factor], f"present_{name}")
        zero.dtype, zero.shape = present.dtype, present.shape
        model.graph.outputs[list(model.graph.outputs).index(present)] = zero

    return mutate


def swap_states(first: str, second: str) -> Mutation:
    """Two states of the same shape are read in each other's place."""

    def mutate(model: ir.Model) -> None:
        a, b = value(model, f"past_{first}"), value(model, f"past_{second}")
        uses_a, uses_b = list(a.uses()), list(b.uses())
        for use in uses_a:
            use.node.replace_input_with(use.idx, b)
        for use in uses_b:
            use.node.replace_input_with(use.idx, a)

    return mutate


def no_sliding_window(model: ir.Model) -> None:
    """The mask `age < window` becomes `age < 1000000`."""
    node = next(n for n in model.graph if n.op_type == "Less" and n.inputs[1].const_value is not None
                and n.inputs[0].producer().op_type == "Sub")  # fmt: skip
    node.replace_input_with(1, constant(model, np.array(1_000_000), "mutation_window"))


def no_replicate(model: ir.Model) -> None:
    """The first call's padding of the downsampling is what the client gave: zeros."""
    past = value(model, "past_conv_ds_state")
    for use in list(past.uses()):
        if use.node.op_type == "Where":
            use.node.outputs[0].replace_all_uses_with(past)


def shift_position(model: ir.Model) -> None:
    """Queries are rotated one position too far; keys are not."""
    splits = [node for node in model.graph if node.op_type == "Split" and len(node.outputs) == 3]
    heads = [node for node in splits if node.inputs[0].producer().op_type == "Add"]
    size = int(value(model, "past_key_0").shape[3])
    cos, sin = exact_rotation(torch.ones(1, dtype=torch.int64), phase_steps(size, 10000.0))
    cos, sin, swap = (
        constant(model, array.numpy(), f"mutation_{name}")
        for name, array in (("cos", cos), ("sin", sin), ("swap", half_swap(size)))
    )
    for index, node in enumerate(heads):
        query = node.outputs[0]
        swapped = insert(model, "MatMul", [query, swap], f"mutation_swapped_{index}")
        kept = insert(model, "Mul", [query, cos], f"mutation_kept_{index}")
        turned = insert(model, "Mul", [swapped, sin], f"mutation_turned_{index}")
        further = insert(model, "Add", [kept, turned], f"mutation_further_{index}")
        redirect(query, further, swapped.producer(), kept.producer())


def keep_bias(name: str) -> Mutation:
    """A transposed convolution hands on its overlap with the bias in it."""

    def mutate(model: ir.Model) -> None:
        bias = model.graph.initializers[f"convs.{name}.bias"].const_value.numpy().reshape(1, -1, 1)
        state = f"conv_{name}_state"
        present = value(model, f"present_{state}")
        present.name = f"mutation_{state}"
        total = insert(model, "Add", [present, constant(model, bias, "mutation_bias")], f"present_{state}")
        total.dtype, total.shape = present.dtype, present.shape
        model.graph.outputs[list(model.graph.outputs).index(present)] = total

    return mutate


def wrong_weight(name: str) -> Mutation:
    """One initializer is off by a percent."""

    def mutate(model: ir.Model) -> None:
        initializer = model.graph.initializers[name]
        array = initializer.const_value.numpy() * np.float32(1.01)
        initializer.const_value = ir.tensor(array, name=name)

    return mutate


def state_mutations(artifact: Artifact) -> Iterator[tuple[str, GraphKind, tuple[str, ...], Mutation]]:
    """Every state ignored, lost, swapped with each other one of its shape: title, graph, guilty states, mutation."""
    for kind in GRAPH_KINDS:
        graph: GraphSpec = artifact.spec(kind)
        for state in graph.states:
            if state.dtype == "float32":
                yield f"{kind}: {state.name} ignored", kind, (state.name,), ignore_state(state.name)
                yield f"{kind}: {state.name} lost", kind, (state.name,), lose_state(state.name)
        for a, b in itertools.combinations(graph.states, 2):
            if a.past_shape == b.past_shape and a.dtype == b.dtype:
                yield f"{kind}: {a.name} and {b.name} swapped", kind, (a.name, b.name), swap_states(a.name, b.name)


def other_mutations() -> Iterator[tuple[str, GraphKind, str, Mutation]]:
    """The rest of the list: title, graph, the stage where it must be found, mutation."""
    for kind in GRAPH_KINDS:
        yield f"{kind}: no sliding window", kind, "transformer_0", no_sliding_window
        yield f"{kind}: queries shifted by one position", kind, "transformer_0", shift_position
    yield "encoder: no replicate on the first call", "encoder", "latents", no_replicate
    yield "decoder: bias kept in the overlap", "decoder", "conv_dec_2_state", keep_bias("dec_2")
    yield "encoder: a weight off by 1 %", "encoder", "enc_6", wrong_weight("convs.enc_6.weight")


def change_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Mutation:
    """One initializer holds other numbers."""

    def mutate(model: ir.Model) -> None:
        initializer = model.graph.initializers[name]
        array = np.asarray(change(initializer.const_value.numpy().copy()))
        initializer.const_value = ir.tensor(array, name=name)

    return mutate


def scaled(index: int | slice, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] *= array.dtype.type(factor)
        return array

    return change


def swapped_rows(first: int, second: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[[first, second]] = array[[second, first]]
        return array

    return change


def search_other_entries(name: str) -> Mutation:
    """Two entries of a codebook change places for the search, not for what the next level's residual is less by."""

    def mutate(model: ir.Model) -> None:
        book = model.graph.initializers[name]
        other = constant(model, swapped_rows(3, 5)(book.const_value.numpy().copy()), "mutation_book")
        search = next(use for use in book.uses() if use.node.op_type == "Gemm")
        search.node.replace_input_with(search.idx, other)

    return mutate


def through(name: str, build: Callable[[ir.Model, ir.Value], ir.Value]) -> Mutation:
    """What comes out as `name` goes through more nodes first: `build(model, value)` gives the new one."""

    def mutate(model: ir.Model) -> None:
        old = value(model, name)
        output = old.is_graph_output()
        readers = [] if output else list(old.uses())
        if output:
            old.name = f"mutation_{name}"
        new = build(model, old)
        new.dtype, new.shape = old.dtype, old.shape
        if output:
            new.name = name
            model.graph.outputs[list(model.graph.outputs).index(old)] = new
        for use in readers:
            use.node.replace_input_with(use.idx, new)

    return mutate


def times(factor: float) -> Callable[[ir.Model, ir.Value], ir.Value]:
    dtype = np.int64 if isinstance(factor, int) else np.float32
    return lambda model, x: insert(
        model, "Mul", [x, constant(model, np.array(factor, dtype), "mutation_f")], "mutation_x"
    )


def clipped(low: float, high: float) -> Callable[[ir.Model, ir.Value], ir.Value]:
    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        bounds = [constant(model, np.array(v, np.float32), f"mutation_{n}") for n, v in (("low", low), ("high", high))]
        return insert(model, "Clip", [x, *bounds], "mutation_clip")

    return build


def squeezed(low: float, high: float) -> Callable[[ir.Model, ir.Value], ir.Value]:
    """`clipped` by operators that every graph has."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        below = insert(
            model, "Min", [x, constant(model, np.array(high, np.float32), "mutation_high")], "mutation_below"
        )
        return insert(
            model, "Max", [below, constant(model, np.array(low, np.float32), "mutation_low")], "mutation_both"
        )

    return build


def picked(axis: int, order: list[int]) -> Callable[[ir.Model, ir.Value], ir.Value]:
    return lambda model, x: insert(
        model, "Gather", [x, constant(model, np.array(order), "mutation_order")], "mutation_picked", axis=axis
    )


def attribute(op_type: str, **values: object) -> Mutation:
    """The first node of this operator has other attributes."""

    def mutate(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type == op_type)
        for name, given in values.items():
            node.attributes[name] = ir.convenience.convert_attribute(name, given)

    return mutate


def half_softmax(model: ir.Model) -> None:
    """Attention weights in half precision."""
    node = next(node for node in model.graph if node.op_type == "Softmax")
    half = insert(model, "Cast", [node.inputs[0]], "mutation_half", to=int(ir.DataType.FLOAT16))
    weights = node.outputs[0]
    node.replace_input_with(0, half)
    wide = insert(model, "Cast", [weights], "mutation_wide", to=int(ir.DataType.FLOAT))
    redirect(weights, wide, wide.producer())


def extra_input(model: ir.Model) -> None:
    """An input that has a default, so that no client notices it."""
    gain = constant(model, np.array([1.0], np.float32), "gain")
    model.graph.inputs.append(gain)
    through(model.graph.outputs[0].name, lambda model, x: insert(model, "Mul", [x, gain], "mutation_gain"))(model)


def unused_input(model: ir.Model) -> None:
    """A state that is handed on wrongly from nothing: its input is not read."""
    past = value(model, "past_key_1")
    other = value(model, "past_key_0")
    redirect(past, other)


def other_outputs(model: ir.Model) -> None:
    """Two states of one shape change places in the list of outputs."""
    names = [v.name for v in model.graph.outputs]
    a, b = names.index("present_key_0"), names.index("present_key_1")
    outputs = list(model.graph.outputs)
    outputs[a], outputs[b] = outputs[b], outputs[a]
    del model.graph.outputs[:]
    model.graph.outputs.extend(outputs)


Build = Callable[[ir.Model, ir.Value], ir.Value]


def number(model: ir.Model, content: float) -> ir.Value:
    """A constant scalar: int64 for an int, else float32."""
    array = np.array(content, np.int64 if isinstance(content, int) else np.float32)
    return constant(model, array, f"mutation_{'i' if isinstance(content, int) else 'f'}{content}_{len(model.graph)}")


def chain(model: ir.Model, x: ir.Value, *steps: tuple[str, float | ir.Value]) -> ir.Value:
    """`x` through operators with two inputs, one after the other: `("Add", 1.0)`."""
    for op, other in steps:
        second = other if isinstance(other, ir.Value) else number(model, other)
        x = insert(model, op, [x, second], f"mutation_{op}_{len(model.graph)}")
    return x


def step_at(model: ir.Model, x: ir.Value, limit: int) -> ir.Value:
    """1 where an integer is above `limit`, else 0."""
    return chain(model, x, ("Sub", limit), ("Max", 0), ("Min", 1))


def frames_of(model: ir.Model, axis: int) -> ir.Value:
    """The size of the data input along an axis."""
    return insert(model, "Shape", [model.graph.inputs[0]], "mutation_size", start=axis, end=axis + 1)


def floats(model: ir.Model, x: ir.Value) -> ir.Value:
    return insert(model, "Cast", [x], f"mutation_float_{len(model.graph)}", to=int(ir.DataType.FLOAT))


def first_row(model: ir.Model, x: ir.Value) -> ir.Value:
    place = len(model.graph)
    numbers = {"low": 0, "high": 1, "axis": 0}
    bounds = [constant(model, np.array([n]), f"mutation_{name}_{place}") for name, n in numbers.items()]
    return insert(model, "Slice", [x, *bounds], f"mutation_first_{place}")


def mixed_rows(share: float) -> Build:
    """Every row gets a share of row 0."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        other = chain(model, first_row(model, x), ("Mul", share))
        return chain(model, x, ("Mul", 1 - share), ("Add", other))

    return build


def less_beyond(axis: int, limit: int, loss: float) -> Build:
    """Softer where the data input has more than `limit` along an axis."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        beyond = floats(model, step_at(model, frames_of(model, axis), limit))
        return chain(model, x, ("Mul", chain(model, beyond, ("Mul", -loss), ("Add", 1.0))))

    return build


def less_with_fewer(codebooks: int, loss: float) -> Build:
    """Softer where fewer codebooks are given."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        missing = chain(model, frames_of(model, 1), ("Sub", codebooks))
        return chain(model, x, ("Mul", chain(model, floats(model, missing), ("Mul", loss), ("Add", 1.0))))

    return build


def wrapped(limit: int) -> Build:
    return lambda model, x: chain(model, x, ("Mod", limit))


def stopped(limit: int) -> Build:
    return lambda model, x: chain(model, x, ("Min", limit))


def off_beyond(limit: int) -> Build:
    return lambda model, x: chain(model, x, ("Add", step_at(model, x, limit)))


def loud_is_broken(limit: float) -> Build:
    """Samples beyond a limit count as silence."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        good = chain(model, insert(model, "Abs", [x], "mutation_abs"), ("Less", limit))
        return insert(model, "Where", [good, x, number(model, 0.0)], "mutation_where")

    return build


def quiet_is_silence(limit: float) -> Build:
    """A sample below a limit counts as silence."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        good = chain(model, insert(model, "Abs", [x], "mutation_abs"), ("GreaterOrEqual", limit))
        return insert(model, "Where", [good, x, number(model, 0.0)], "mutation_where")

    return build


def no_guard(model: ir.Model) -> None:
    """NaN goes into the network."""
    node = next(node for node in model.graph if node.op_type == "Where" and node.inputs[0].producer().op_type == "Less"
                and node.inputs[0].producer().inputs[0].producer().op_type == "Abs")  # fmt: skip
    redirect(node.outputs[0], node.inputs[1])


def where(model: ir.Model, condition: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
    return insert(model, "Where", [condition, yes, no], f"mutation_where_{len(model.graph)}")


def size_is(axis: int, size: int, loss: float) -> Build:
    """Softer where the data input has just this size along an axis."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        off = insert(model, "Abs", [chain(model, frames_of(model, axis), ("Sub", size))], "mutation_off")
        share = chain(model, floats(model, chain(model, off, ("Min", 1))), ("Mul", loss), ("Add", 1.0 - loss))
        return chain(model, x, ("Mul", share))

    return build


def between(low: float, high: float) -> Build:
    """Values between two bounds count as 0."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        small, large = (chain(model, x, ("Less", bound)) for bound in (low, high))
        inside = insert(model, "And", [large, insert(model, "Not", [small], "mutation_not")], "mutation_inside")
        return where(model, inside, number(model, 0.0), x)

    return build


def total(model: ir.Model, x: ir.Value) -> ir.Value:
    """The sum of a tensor's magnitudes, `[1, 1, 1]`, by operators that every graph has."""
    flat = insert(model, "Reshape", [insert(model, "Abs", [x], f"mutation_abs_{len(model.graph)}"),
                  constant(model, np.array([1, 1, -1]), f"mutation_flat_{len(model.graph)}")],
                  f"mutation_row_{len(model.graph)}")  # fmt: skip
    ones = insert(model, "Equal", [flat, flat], f"mutation_same_{len(model.graph)}")
    column = insert(model, "Transpose", [floats(model, ones)], f"mutation_ones_{len(model.graph)}", perm=[0, 2, 1])
    return insert(model, "MatMul", [flat, column], f"mutation_total_{len(model.graph)}")


def quiet_call_is_silence(limit: float) -> Build:
    """A call none of whose samples reaches a limit counts as silence."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        loud = insert(model, "Abs", [x], "mutation_loud")
        reached = floats(model, chain(model, loud, ("GreaterOrEqual", limit)))
        return chain(model, x, ("Mul", chain(model, total(model, reached), ("Min", 1.0))))

    return build


def loud_call_is_silence(limit: float) -> Build:
    """A call one of whose samples reaches a limit counts as silence."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        loud = insert(model, "Abs", [x], "mutation_loud")
        reached = floats(model, chain(model, loud, ("GreaterOrEqual", limit)))
        gate = chain(model, total(model, reached), ("Min", 1.0), ("Mul", -1.0), ("Add", 1.0))
        return chain(model, x, ("Mul", gate))

    return build


def broken_by_silence(model: ir.Model, x: ir.Value) -> ir.Value:
    """NaN where a call is digital silence."""
    sum_ = total(model, model.graph.inputs[0])
    return chain(model, x, ("Mul", chain(model, sum_, ("Div", sum_))))


def offset_removed(limit: float) -> Build:
    """A call's mean is taken away where it is above a limit."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        mean = insert(model, "ReduceMean", [x], "mutation_mean", keepdims=1)
        return chain(
            model, x, ("Sub", chain(model, mean, ("Mul", floats(model, chain(model, mean, ("Greater", limit))))))
        )

    return build


def noisy(level: float) -> Build:
    """Noise that depends on the signal alone."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        wild = insert(model, "Sin", [chain(model, x, ("Mul", 1e5))], "mutation_wild")
        return chain(model, x, ("Add", chain(model, wild, ("Mul", level))))

    return build


def stepped(steps: float) -> Build:
    """Rounded to integers of so many in one."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        whole = insert(model, "Cast", [chain(model, x, ("Mul", steps))], "mutation_whole", to=int(ir.DataType.INT64))
        return chain(model, floats(model, whole), ("Div", steps))

    return build


def through_half(model: ir.Model, x: ir.Value) -> ir.Value:
    return floats(model, insert(model, "Cast", [x], "mutation_half", to=int(ir.DataType.FLOAT16)))


def other_state(other: str, share: float = 1.0) -> Build:
    """A state has a share of another one of its shape."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        more = chain(model, value(model, f"past_{other}"), ("Mul", share))
        return chain(model, x, ("Mul", 1 - share), ("Add", more))

    return build


def code_is(code: int, other: int) -> Build:
    """One code counts as another."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        return where(model, chain(model, x, ("Equal", code)), number(model, other), x)

    return build


def row_beyond(row: int) -> Build:
    """Rows from this one on read row 0."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        places = insert(
            model,
            "Range",
            [
                number(model, 0),
                insert(
                    model, "Squeeze", [insert(model, "Shape", [x], "mutation_rows", start=0, end=1)], "mutation_count"
                ),
                number(model, 1),
            ],
            "mutation_range",
        )
        small = chain(model, places, ("Less", row))
        order = where(model, small, places, number(model, 0))
        return insert(model, "Gather", [x, order], "mutation_picked", axis=0)

    return build


def replaced_constant(op_type: str, index: int, old: Callable[[np.ndarray], bool], new: object) -> Mutation:
    """The first node of this operator that reads such a constant reads another one."""

    def mutate(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == op_type and len(node.inputs) > index and node.inputs[index] is not None:
                content = node.inputs[index].const_value
                if content is not None and old(content.numpy()):
                    array = np.asarray(new, content.numpy().dtype).reshape(content.numpy().shape)
                    node.replace_input_with(index, constant(model, array, "mutation_constant"))
                    return
        raise LookupError(f"no such {op_type}")

    return mutate


def read_elsewhere(first: str, second: str) -> Mutation:
    """What reads one weight reads another one of its shape."""

    def mutate(model: ir.Model) -> None:
        redirect(model.graph.initializers[first], model.graph.initializers[second])

    return mutate


def extra_required_input(model: ir.Model) -> None:
    gain = ir.Value(name="gain", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    model.graph.inputs.append(gain)
    through(model.graph.outputs[0].name, lambda model, x: insert(model, "Mul", [x, gain], "mutation_gain"))(model)


def later_rows(model: ir.Model, x: ir.Value, ndim: int) -> ir.Value:
    """0 for row 0 of a call, 1 for the others: `[rows, 1, …]` of so many dimensions."""
    place = len(model.graph)
    shape = insert(model, "Shape", [x], f"mutation_rows_{place}", start=0, end=1)
    count = insert(model, "Squeeze", [shape], f"mutation_count_{place}")
    places = insert(model, "Range", [number(model, 0), count, number(model, 1)], f"mutation_places_{place}")
    wanted = constant(model, np.array([-1] + [1] * (ndim - 1)), f"mutation_column_{place}")
    column = insert(model, "Reshape", [chain(model, places, ("Min", 1)), wanted], f"mutation_later_{place}")
    return floats(model, column)


def residual_of_row_0(residual: str, branch: str) -> Mutation:
    """The sum after a branch takes what went around it from row 0 alone."""

    def mutate(model: ir.Model) -> None:
        around, through_ = value(model, residual), value(model, branch)
        node = next(use.node for use in through_.uses() if use.node.op_type == "Add" and around in use.node.inputs)
        first = chain(model, later_rows(model, around, 3), ("Mul", -1.0), ("Add", 1.0))
        node.replace_input_with(list(node.inputs).index(around), chain(model, around, ("Mul", first)))

    return mutate


def guard_of_some_rows(first: bool) -> Mutation:
    """NaN is let in by row 0 alone, or by all others alone."""

    def mutate(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type == "Where" and node.inputs[0].producer().op_type
                    == "Less" and node.inputs[0].producer().inputs[0].producer().op_type == "Abs")  # fmt: skip
        guarded, samples = next(iter(node.outputs[0].uses())).node.outputs[0], model.graph.inputs[0]
        later = chain(model, later_rows(model, samples, 3), ("Greater", 0.5))
        wrong = where(model, later, *((guarded, samples) if first else (samples, guarded)))
        redirect(guarded, wrong, wrong.producer())

    return mutate


def no_replicate_in_later_rows(model: ir.Model) -> None:
    """The padding before a stream is zeros in rows after the first."""
    past = value(model, "past_conv_ds_state")
    for use in list(past.uses()):
        if use.node.op_type == "Where":
            right = use.node.outputs[0]
            later = chain(model, later_rows(model, past, 3), ("Greater", 0.5))
            redirect(right, wrong := where(model, later, past, right), wrong.producer())


def from_position(limit: int, other: str) -> Build:
    """A ring's state is another one of its shape from a position on."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        beyond = chain(model, value(model, "past_position"), ("Greater", limit))
        axes = constant(model, np.array([2, 3]), "mutation_axes")
        return where(model, insert(model, "Unsqueeze", [beyond, axes], "mutation_beyond"), value(model, other), x)

    return build


def slot_off_once_wrapped(model: ir.Model) -> None:
    """From the second turn of the ring on, tokens are written one slot further."""
    remainders = [node for node in model.graph if node.op_type == "Mod"]
    node = next(node for node in remainders if node.inputs[1].const_value.numpy().max() < 2**20)
    slots, capacity = node.outputs[0], node.inputs[1]
    turns = chain(model, insert(model, "Div", [node.inputs[0], capacity], "mutation_turns"), ("Min", 1))
    further = insert(model, "Mod", [chain(model, slots, ("Add", turns)), capacity], "mutation_slots")
    redirect(slots, further, turns.producer(), next(use.node for use in slots.uses() if use.node.op_type == "Add"
             and use.node.outputs[0].name.startswith("mutation")))  # fmt: skip


def int32(model: ir.Model, x: ir.Value) -> ir.Value:
    """A counter that wraps as int32 does, by operators that every graph has."""
    return chain(model, x, ("Add", 2**31), ("Mod", 2**32), ("Sub", 2**31))


def bias_again(name: str, when: Callable[[ir.Model], ir.Value]) -> Build:
    """A convolution adds its bias twice where a number, 0 or 1, says so."""

    def build(model: ir.Model, x: ir.Value) -> ir.Value:
        bias = model.graph.initializers[f"convs.{name}.bias"].const_value.numpy().reshape(1, -1, 1)
        more = insert(model, "Mul", [constant(model, bias, "mutation_bias"), when(model)], "mutation_more")
        return chain(model, x, ("Add", more))

    return build


def beyond_position(limit: int) -> Callable[[ir.Model], ir.Value]:
    """1 for rows of a ring beyond a position, else 0: `[B, 1, 1]`."""

    def build(model: ir.Model) -> ir.Value:
        axes = constant(model, np.array([2]), "mutation_axes")
        beyond = floats(model, step_at(model, value(model, "past_position"), limit))
        return insert(model, "Unsqueeze", [beyond, axes], "mutation_beyond")

    return build


def window_beyond(limit: int) -> Callable[[ir.Model], ir.Value]:
    """1 where a window holds more tokens, else 0."""

    def build(model: ir.Model) -> ir.Value:
        held = insert(model, "Shape", [value(model, "past_key_0")], "mutation_held", start=2, end=3)
        return floats(model, step_at(model, held, limit))

    return build


def softer_where(when: Callable[[ir.Model], ir.Value], loss: float) -> Build:
    return lambda model, x: chain(model, x, ("Mul", chain(model, when(model), ("Mul", -loss), ("Add", 1.0))))


def other_theta(theta: float) -> Mutation:
    """Keys and queries turn with another base."""

    def mutate(model: ir.Model) -> None:
        for initializer in list(model.graph.initializers.values()):
            array = initializer.const_value.numpy()
            if array.ndim == 1 and array.size > 3 and array[0] > 0:
                ratio = array / array[0].astype(np.float64)
                exponents = np.arange(array.size) / array.size
                if np.allclose(ratio, 10000.0**-exponents, rtol=1e-3):
                    changed = np.asarray(array[0] * theta**-exponents, array.dtype)
                    initializer.const_value = ir.tensor(changed, name=initializer.name)
                    return
        raise LookupError("no frequencies")

    return mutate


def other_input(op_type: str, index: int, count: int, new: object) -> Mutation:
    """The node number `count` of an operator reads another constant."""

    def mutate(model: ir.Model) -> None:
        node = [node for node in model.graph if node.op_type == op_type][count]
        old = node.inputs[index].const_value.numpy()
        node.replace_input_with(index, constant(model, np.asarray(new, old.dtype), "mutation_constant"))

    return mutate


def one_head(factor: float) -> Mutation:
    """One head of the first layer attends with other weights."""

    def mutate(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type == "Softmax")
        weights = node.outputs[0]
        heads = value(model, "past_key_0").shape[1]
        factors = np.ones((heads, 1, 1), np.float32)
        factors[1] = factor
        louder = insert(model, "Mul", [weights, constant(model, factors, "mutation_head")], "mutation_heads")
        redirect(weights, louder, louder.producer())

    return mutate


def delayed(model: ir.Model, x: ir.Value) -> ir.Value:
    """A sample late; the first one twice."""
    parts = []
    for name, start, stop in (("first", 0, 1), ("rest", 0, -1)):
        bounds = [constant(model, np.array([n]), f"mutation_{name}_{i}") for i, n in enumerate((start, stop, 2))]
        parts.append(insert(model, "Slice", [x, *bounds], f"mutation_{name}"))
    return insert(model, "Concat", parts, "mutation_late", axis=2)


def codes_beyond(limit: int, top: int) -> Build:
    """Codes above a limit are one too high."""
    return lambda model, x: chain(model, x, ("Add", step_at(model, x, limit)), ("Min", top))


def floor(bound: float) -> Build:
    """Limited on one side."""
    return lambda model, x: insert(
        model, "Clip", [x, constant(model, np.array(bound, np.float32), "mutation_floor")], "mutation_clip"
    )


def row_position(model: ir.Model, x: ir.Value) -> ir.Value:
    """All rows are as old as row 0."""
    return chain(model, chain(model, x, ("Mul", 0)), ("Add", first_row(model, x)))


def further_output(model: ir.Model) -> None:
    more = insert(model, "Identity", [model.graph.outputs[0]], "further")
    more.dtype, more.shape = model.graph.outputs[0].dtype, model.graph.outputs[0].shape
    model.graph.outputs.append(more)


def other_source(model: ir.Model) -> None:
    """The graph names another model than its manifest."""
    model.metadata_props["source_model"] = "another/model"
