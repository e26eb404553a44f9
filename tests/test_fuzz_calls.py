"""Whatever a caller passes: a clear error of the package's own kind, or the reference's answer."""

# ruff: noqa: PT017 (whether a call raises is not known beforehand)

import contextlib
import re
from importlib.util import find_spec

import hostile
import numpy as np
import pytest
import reference
from doors import CELLS, FULL, build, layer_of, make, make_fitting, numpy_cell, numpy_layer
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference import each, parts, state_of, whole

import elman
from elman.spec import CELLS as SPECS

L, N, D, H = 4, 3, 2, 5
many = settings(max_examples=4 * settings.default.max_examples)  # there is much to get wrong
OWN = (TypeError, ValueError)
# NumPy's own words, and torch's, where an array cannot be had.
NO_MEMORY = re.compile(
    "Unable to allocate|array is too big|iterator is too large|too many|can't allocate memory"
)


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    with hostile.bounded_memory():
        yield


def is_clear(error, kinds, title):
    """Of the package's own kinds, and opening with the layer's name, unless there is no memory."""
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return True
    return isinstance(error, kinds) and str(error).startswith(title)


def as_state(spec, state):
    """A state that a call took, as the reference takes it: h, or (h, c)."""
    states = [state] if len(spec.cell.states) == 1 else state
    return whole([None if a is None else np.asarray(a, np.float64) for a in states])


def expected(case, x, state, lengths, reset):
    """The reference's answer, of arguments that a call took: output and the final state."""
    x, state = np.asarray(x, np.float64), None if state is None else as_state(case.spec, state)
    lengths = None if lengths is None else np.asarray(lengths)
    reset = None if reset is None else np.asarray(reset)
    batched = x.ndim == 3
    if not batched:
        x = x[:, None]
        state = None if state is None else each(lambda a: a[:, None], state)
        lengths = None if lengths is None else lengths.reshape(1)
        reset = None if reset is None else reset[:, None]
    if state is None:
        state = state_of(case.spec, x.shape[1:2], np.zeros)
    output, final, _ = reference.run(
        case.spec.cell, case.weights, x, state, lengths=lengths, reset=reset
    )
    return (output, final) if batched else (output[:, 0], each(lambda a: a[:, 0], final))


def agrees(results, want, dtype):
    """Output and final state."""
    for got, correct in zip(results, want, strict=True):
        assert {a.dtype for a in parts(got)} == {np.dtype(dtype)}
        reference.assert_close(got, correct, dtype)


good_cases = st.builds(
    lambda cell, dtype, seed, **options: make_fitting(
        cell, D, H, L, N, dtype, seed=seed, **options
    ),
    st.sampled_from(CELLS),
    st.sampled_from(FULL),
    st.integers(0, 99),
    bidirectional=st.booleans(),
    num_layers=st.integers(1, 2),
    proj_size=st.sampled_from([0, 0, 3]),
)


def one_or_two_of(names):
    """Sorted: a set's own order is another one in each process, and so would the examples be."""
    return st.sets(st.sampled_from(list(names)), min_size=1, max_size=2).map(sorted)


def a_call(data, case):
    """Arguments of a call, of which one or two are not what they should be."""
    arguments = {"x": case.x, "state": case.state, "lengths": None, "reset": None}
    strategies = {
        "x": hostile.changed(case.x),
        "state": hostile.changed_state(case.state),
        "lengths": hostile.lengths(L, N),
        "reset": hostile.changed(case.reset),
    }
    for name in data.draw(one_or_two_of(strategies)):
        arguments[name] = data.draw(strategies[name], label=name)
    return arguments


@pytest.mark.parametrize("method", ["__call__", "vjp"])
@many
@given(data=st.data(), case=good_cases)
def test_a_call_of_a_layer(method, data, case):
    layer = numpy_layer(case)
    before = layer(case.x, case.state)
    arguments = a_call(data, case)
    try:
        results = getattr(layer, method)(*arguments.values())[:2]
    except Exception as e:
        assert is_clear(e, OWN, case.spec.title), repr(e)
    else:
        agrees(results, expected(case, **arguments), case.dtype)
    reference.assert_same_bits(layer(case.x, case.state), before)


@given(data=st.data(), case=good_cases)
def test_a_call_of_vjp(data, case):
    _, _, vjp = numpy_layer(case).vjp(case.x, case.state)
    want = vjp(case.d_output, case.d_final)
    if data.draw(st.booleans()):
        d_output, d_final = data.draw(hostile.changed(case.d_output)), case.d_final
    else:
        d_output, d_final = case.d_output, data.draw(hostile.changed_state(case.d_final))
    try:
        got = vjp(d_output, d_final)
    except Exception as e:
        assert is_clear(e, OWN, case.spec.title), repr(e)
    else:
        _, _, correct = reference.run(case.spec.cell, case.weights, case.x, case.state)
        d_final = None if d_final is None else as_state(case.spec, d_final)
        reference.assert_all_close(got, correct(d_output, d_final), case.dtype)
    reference.assert_all_same_bits(vjp(case.d_output, case.d_final), want)


@given(
    data=st.data(),
    cell=st.sampled_from(CELLS),
    dtype=st.sampled_from(FULL),
)
def test_a_call_of_a_cell(data, cell, dtype):
    case = make(cell, D, H, 1, N, dtype)
    step = numpy_cell(case)
    x, state = case.x[0], each(lambda a: a[0], case.state)
    if data.draw(st.booleans()):
        x = data.draw(hostile.changed(x))
    else:
        state = data.draw(hostile.changed_state(state))
    try:
        after = step(x, state)
    except Exception as e:
        assert is_clear(e, OWN, f"{case.spec.title}Cell"), repr(e)
        return
    x = np.asarray(x, np.float64)
    if state is None:
        state = each(np.zeros_like, after)
    state = parts(as_state(case.spec, state))
    biases = [case.weights[f"{name}_l0"].astype(np.float64) for name in ("bias_ih", "bias_hh")]
    w_hh = case.weights["weight_hh_l0"].T.astype(np.float64)
    u = state[0] @ w_hh + biases[1]
    v = x @ case.weights["weight_ih_l0"].T.astype(np.float64) + biases[0]
    if SPECS[cell].gated:
        u[..., -H:] = SPECS[cell].gated(v, u, state[0], np) @ w_hh[:, -H:] + biases[1][-H:]
    reference.assert_close(after, SPECS[cell].forward(v, u, state[-1], np), dtype)


SIZES = st.one_of(st.integers(-2, 4), hostile.HUGE, hostile.NOTHING)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
@given(data=st.data())
def test_a_constructor(kind, data):
    """Huge sizes are refused, or there is no memory for them; nothing is tried for hours."""
    good = {"input_size": D, "hidden_size": H, "bias": True, "dtype": "float32", "seed": 0}
    if not kind.endswith("Cell"):
        good |= {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False}
    if kind.startswith("RNN"):
        good["nonlinearity"] = "tanh"
    if kind == "LSTM":
        good["proj_size"] = 0
    names = data.draw(one_or_two_of(good))
    changed = {name: data.draw(SIZES, label=name) for name in names}
    try:
        layer = getattr(elman, kind)(**good | changed)
    except (*OWN, MemoryError) as e:
        # What a dtype or a seed may be is NumPy's to say.
        if not {"dtype", "seed"} & {*names}:
            assert is_clear(e, OWN, kind.removesuffix("Cell")), repr(e)
        return
    x = np.ones((L, layer.spec.input_size), layer.dtype)
    output, *_ = parts(layer(x))
    assert output.shape[-1] == layer.spec.directions * layer.spec.output_size
    assert np.isfinite(output).all()


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
def test_sizes_beyond_any_machine(name):
    with pytest.raises(ValueError, match=f"^GRU: {name} must be at most"):
        elman.GRU(**{"input_size": D, "hidden_size": H, name: 2**31})


@given(data=st.data(), case=good_cases)
def test_weights_that_are_loaded(data, case):
    layer = numpy_layer(case)
    weights = layer.state_dict()
    name = data.draw(st.sampled_from([*weights, 1, None, "weight_ih_l7", ""]))
    base = weights.get(name, weights["weight_ih_l0"])
    given = weights | {name: data.draw(hostile.changed(base))}
    given = data.draw(st.sampled_from([given, given, given, None, [], "abc", list(given.items())]))
    try:
        layer.load_state_dict(given)
    except Exception as e:
        assert is_clear(e, OWN, case.spec.title), repr(e)
        reference.assert_all_same_bits(layer.state_dict(), weights)
    else:
        for k, w in given.items():
            reference.assert_same_bits(layer.state_dict()[k], np.asarray(w))


@given(n=st.one_of(st.integers(), hostile.HUGE, hostile.NOTHING))
def test_a_number_of_threads(n):
    try:
        elman.set_num_threads(n)
    except OWN as e:
        assert str(e).startswith("set_num_threads: expected")
    else:
        elman.GRU(D, H)(np.zeros((L, D), "float32"))


def torch_layer(case):
    import torch

    import elman.torch

    layer = layer_of(case, elman.torch, getattr(torch, case.dtype))
    layer.load_state_dict({name: torch.from_numpy(w) for name, w in case.weights.items()})
    return layer


def torch_tensor(value):
    """As torch has it, where torch can; of a pair, each."""
    import torch

    if isinstance(value, (tuple, list)) and any(isinstance(a, np.ndarray) for a in value):
        return type(value)(map(torch_tensor, value))
    if not isinstance(value, np.ndarray):
        return value
    try:
        if value.size and not any(value.strides):  # as large as it is said to be, and one value
            return torch.from_numpy(value.reshape(-1)[:1].copy()).expand(value.shape)
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError, MemoryError):
        return value


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
@many
@given(data=st.data(), case=good_cases)
def test_a_call_of_a_layer_of_torch(data, case):
    """torch's own error where it has one, else RuntimeError that opens with the layer's name."""
    import torch

    layer = torch_layer(case)
    x = torch.from_numpy(case.x)
    before, _ = layer(x)
    arguments = a_call(data, case)
    call = {name: torch_tensor(arguments[name]) for name in ("x", "state")}
    for name in ("lengths", "reset"):
        call[name] = data.draw(st.sampled_from([torch_tensor, lambda a: a]))(arguments[name])
    try:
        results = layer(call["x"], call["state"], lengths=call["lengths"], reset=call["reset"])
    except Exception as e:
        stock = torchs_error(layer, call["x"], call["state"])
        if stock is not None and not NO_MEMORY.search(str(e)):
            same = type(e) is type(stock) or is_clear(e, RuntimeError, case.spec.title)
            assert same, (repr(e), repr(stock))
        else:
            assert is_clear(e, RuntimeError, case.spec.title), repr(e)
    else:
        if call["x"].dtype == x.dtype:
            results = [each(lambda t: t.detach().numpy(), result) for result in results]
            agrees(results, expected(case, **call), case.dtype)
    assert torch.equal(layer(x)[0], before)


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
@given(
    data=st.data(),
    cell=st.sampled_from([cell for cell in CELLS if SPECS[cell].gated is None]),  # torch's
    dtype=st.sampled_from(FULL),
)
def test_a_call_of_a_cell_of_torch(data, cell, dtype):
    """torch's own error, or torch's own answer."""
    import torch

    import elman.torch

    ours = build(elman.torch, cell, D, H, step=True, dtype=getattr(torch, dtype))
    stock = type(ours).__mro__[1].forward
    case = make(cell, D, H, 1, N, dtype)
    call = {"input": case.x[0], "hx": each(lambda a: a[0], case.state)}
    which = data.draw(st.sampled_from(list(call)))
    call[which] = data.draw(hostile.changed_state(call[which]), label=which)
    call = {k: torch_tensor(a) for k, a in call.items()}
    try:
        want = stock(ours, **call)
    except Exception as error:
        with pytest.raises(type(error)) as caught:
            ours(**call)
        assert str(caught.value) == str(error) or NO_MEMORY.search(str(caught.value))
    else:
        got, want = (each(lambda t: t.detach().numpy(), state) for state in (ours(**call), want))
        reference.assert_close(got, want, dtype)


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
def test_nothing_is_copied_before_all_is_looked_at():
    """torch's word on the state, not on memory for an x that is one number and said to be huge."""
    import torch

    case = make("gru", D, H, L, N, "float32")
    with pytest.raises(AttributeError, match="'list' object has no attribute 'dim'"):
        torch_layer(case)(torch.ones(1).expand(2**31, N, D), case.state.tolist())


def torchs_error(layer, x, h_0):
    """What torch.nn's layer raises, if anything."""
    from torch import nn

    try:
        getattr(nn, type(layer).__name__).forward(layer, x, h_0)
    except Exception as e:
        return e
    return None


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
@given(
    batch_sizes=st.lists(
        st.one_of(st.integers(-1, 4), st.sampled_from([10**6, 2**62])), min_size=1, max_size=5
    ),
    rows=st.integers(1, 9),
    dtype=st.sampled_from(["int64", "int32", "float32"]),
)
@example(batch_sizes=[3, 2, 2, 1], rows=8, dtype="int64")
@example(batch_sizes=[3, 2], rows=8, dtype="int64")
@example(batch_sizes=[3, 0], rows=3, dtype="int64")
@example(batch_sizes=[2**40], rows=8, dtype="int64")
def test_a_packed_sequence_that_lies(batch_sizes, rows, dtype):
    """What is packed well gives what it gives unpacked; what is not, an error."""
    import torch
    from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

    case = make("gru", D, H, L, N, "float32")
    layer = torch_layer(case)
    data = torch.randn(rows, D, generator=torch.manual_seed(0))
    packed = PackedSequence(data, torch.tensor(batch_sizes).to(getattr(torch, dtype)))
    try:
        output, h_n = layer(packed)
    except (RuntimeError, TypeError, ValueError) as e:
        stock = torchs_error(layer, packed, None)
        assert stock is not None or is_clear(e, RuntimeError, "GRU: batch_sizes"), repr(e)
        return
    assert sum(batch_sizes) == rows
    assert batch_sizes == sorted(batch_sizes, reverse=True)
    packed = PackedSequence(data, torch.tensor(batch_sizes))
    x, lengths = pad_packed_sequence(packed)
    want, want_h_n = layer(x, lengths=lengths)
    got, _ = pad_packed_sequence(PackedSequence(output.data, packed.batch_sizes))
    assert torch.equal(got, want)
    assert torch.equal(h_n, want_h_n)


def mlx_array(value):
    """As MLX has it, where MLX can."""
    import mlx.core as mx

    if isinstance(value, np.ndarray) and value.size < 1000:
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return mx.array(np.array(value))
    return value


@pytest.mark.skipif(not find_spec("mlx"), reason="MLX is not installed")
@many
@given(data=st.data(), case=good_cases)
def test_a_call_of_a_layer_of_mlx(data, case):
    import mlx.core as mx

    import elman.mlx

    assume(not case.spec.proj_size)
    kind = getattr(elman.mlx, case.spec.title)
    layer = kind(D, H, num_layers=case.spec.num_layers, bidirectional=case.spec.bidirectional)
    x = mx.array(case.x.astype("float32")).swapaxes(0, 1)
    before = parts(layer(x))
    lengths = data.draw(st.one_of(st.none(), hostile.lengths(L, N)))
    reset = data.draw(st.one_of(st.none(), hostile.changed(case.reset.T)))
    other = data.draw(hostile.changed(case.x[..., :D].swapaxes(0, 1).astype("float32")))
    other = mlx_array(other) if data.draw(st.booleans()) else x
    states = [
        mlx_array(data.draw(st.one_of(st.none(), hostile.changed(a.astype("float32")))))
        for a in parts(case.state)
    ]
    try:
        *every, final = layer(other, *states, lengths=lengths, reset=reset, return_state=True)
    except Exception as e:
        assert is_clear(e, OWN, case.spec.title), repr(e)
    else:
        assert {a.shape[-1] for a in every} == {case.spec.directions * H}
        if other is x:
            want = layer(
                x,
                *states,
                lengths=None if lengths is None else np.asarray(lengths).tolist(),
                reset=None if reset is None else np.asarray(reset).tolist(),
            )
            assert all(map(mx.array_equal, every, parts(want)))
            assert {a.shape[-1] for a in parts(final)} == {H}
    assert all(map(mx.array_equal, parts(layer(x)), before))
