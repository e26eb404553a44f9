"""The NumPy package: constructors, weights, layouts, dropout, vjp. Bad input: test_bad_input.py."""

import copy
import pickle
import re

import numpy as np
import pytest
from reference import (
    assert_all_close,
    assert_all_same_bits,
    assert_close,
    assert_same_bits,
    each,
    named,
    parts,
    run,
    state_of,
)

import elman

LAYERS = [elman.RNN, elman.GRU, elman.LSTM]
CELLS = [elman.RNNCell, elman.GRUCell, elman.LSTMCell]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4, "RNNCell": 1, "GRUCell": 3, "LSTMCell": 4}


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def normal_state(layer, *batch, dtype="float32", seed=0):
    """A state of the layer's: h_0, or (h_0, c_0)."""
    rng = np.random.default_rng(seed)
    return state_of(layer.spec, batch, lambda shape: rng.normal(size=shape).astype(dtype))


# Weights


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bias", [False, True])
def test_names_and_shapes_of_weights(kind, bias):
    layer = kind(5, 7, num_layers=2, bias=bias, bidirectional=True)
    rows = GATES[kind.__name__] * 7
    expected = {}
    for k, size in ((0, 5), (1, 14)):
        for suffix in ("", "_reverse"):
            expected[f"weight_ih_l{k}{suffix}"] = (rows, size)
            expected[f"weight_hh_l{k}{suffix}"] = (rows, 7)
            if bias:
                expected[f"bias_ih_l{k}{suffix}"] = (rows,)
                expected[f"bias_hh_l{k}{suffix}"] = (rows,)
    shapes = {name: w.shape for name, w in layer.state_dict().items()}
    assert list(shapes.items()) == list(expected.items())


def test_names_and_shapes_of_weights_with_a_projection():
    layer = elman.LSTM(5, 7, 2, bias=False, bidirectional=True, proj_size=3)
    expected = {}
    for k, size in ((0, 5), (1, 6)):
        for suffix in ("", "_reverse"):
            expected[f"weight_ih_l{k}{suffix}"] = (28, size)
            expected[f"weight_hh_l{k}{suffix}"] = (28, 3)
            expected[f"weight_hr_l{k}{suffix}"] = (3, 7)
    shapes = {name: w.shape for name, w in layer.state_dict().items()}
    assert list(shapes.items()) == list(expected.items())


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [False, True])
def test_names_and_shapes_of_weights_of_a_cell(kind, bias):
    rows = GATES[kind.__name__] * 7
    expected = {"weight_ih": (rows, 5), "weight_hh": (rows, 7)}
    if bias:
        expected |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    shapes = {name: w.shape for name, w in kind(5, 7, bias).state_dict().items()}
    assert list(shapes.items()) == list(expected.items())


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, np.dtype("float64")])
def test_initial_weights_are_uniform(kind, dtype):
    weights = kind(40, 25, dtype=dtype, seed=0).state_dict()
    assert {w.dtype for w in weights.values()} == {np.dtype(dtype)}
    values = np.concatenate([w.ravel() for w in weights.values()])
    bound = 1 / 5
    assert np.abs(values).max() <= np.float32(bound)
    # Of n draws, the share in each tenth of the range is 0.1 with deviation 0.3/sqrt(n).
    shares = np.histogram(values, 10, (-bound, bound))[0] / values.size
    assert np.abs(shares - 0.1).max() < 5 * 0.3 / np.sqrt(values.size)
    for w in weights.values():
        assert np.unique(w).size > 0.99 * w.size


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_a_seed_fixes_the_weights(kind):
    first = kind(3, 4, seed=7).state_dict()
    assert_all_same_bits(kind(3, 4, seed=7).state_dict(), first)
    unseeded = kind(3, 4).state_dict()
    for one, other in ((kind(3, 4, seed=8), first), (kind(3, 4), first), (kind(3, 4), unseeded)):
        assert not any(np.array_equal(w, other[name]) for name, w in one.state_dict().items())


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_weights_go_in_and_out_as_copies(kind):
    source, target = kind(3, 4, seed=0), kind(3, 4, seed=1)
    x = normal(5, 3)
    weights = source.state_dict()
    target.load_state_dict(weights)
    want = source(x)
    for w in weights.values():
        w[:] = 0
    for w in target.state_dict().values():
        w[:] = 0
    for got, expected in zip(target(x), want, strict=True):
        assert_same_bits(got, expected)


def test_weights_of_any_layout_and_nested_lists_are_taken():
    layer = elman.GRU(3, 4, seed=0, dtype="float64")
    weights = layer.state_dict()
    other = elman.GRU(3, 4, seed=1, dtype="float64")
    other.load_state_dict({k: np.asfortranarray(w) for k, w in reversed(weights.items())})
    assert_all_same_bits(other.state_dict(), weights)
    other = elman.GRU(3, 4, seed=1, dtype="float64")
    other.load_state_dict({k: w.tolist() for k, w in weights.items()})
    assert_all_same_bits(other.state_dict(), weights)


# Constructor and copies


@pytest.mark.parametrize(
    "text",
    [
        "RNN(3, 4)",
        "GRU(3, 4)",
        "RNN(3, 4, nonlinearity='relu')",
        "GRU(3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True)",
        "RNN(3, 4, num_layers=2, dropout=0.5, nonlinearity='relu')",
        "LSTM(3, 4)",
        "LSTM(3, 4, num_layers=2, bias=False, bidirectional=True, proj_size=2)",
        "GRUCell(3, 4)",
        "LSTMCell(3, 4, bias=False)",
        "RNNCell(3, 4, bias=False)",
        "RNNCell(3, 4, nonlinearity='relu')",
    ],
)
def test_repr_is_the_call_that_builds_the_layer(text):
    assert repr(eval(text, vars(elman))) == text


def test_positions_of_arguments_are_those_of_pytorch():
    rnn = elman.RNN(3, 4, 2, "relu", False, True, 0.5, True).spec
    gru = elman.GRU(3, 4, 2, False, True, 0.5, True).spec
    lstm = elman.LSTM(3, 4, 2, False, True, 0.5, True, 3).spec
    for spec in (rnn, gru, lstm):
        assert (spec.input_size, spec.hidden_size, spec.num_layers) == (3, 4, 2)
        assert (spec.bias, spec.batch_first, spec.bidirectional) == (False, True, True)
        assert spec.dropout == 0.5
    assert (rnn.cell.name, gru.cell.name, lstm.cell.name) == ("rnn_relu", "gru", "lstm")
    assert (gru.proj_size, lstm.proj_size) == (0, 3)
    assert elman.RNNCell(3, 4, False, "relu").spec.cell.name == "rnn_relu"
    for kind in LAYERS + CELLS:
        with pytest.raises(TypeError, match="positional argument"):
            kind(3, 4, *[1] * 7)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("duplicate", [lambda a: pickle.loads(pickle.dumps(a)), copy.deepcopy])
def test_pickles_and_deep_copies(kind, duplicate):
    original = kind(3, 4, seed=0, dtype="float64")
    twin = duplicate(original)
    x = normal(5, 3, dtype="float64")
    want = original(x)
    for got, expected in zip(twin(x), want, strict=True):
        assert_same_bits(got, expected)
    assert repr(twin) == repr(original)
    twin.load_state_dict({k: 0 * w for k, w in twin.state_dict().items()})
    for got, expected in zip(original(x), want, strict=True):
        assert_same_bits(got, expected)


# Layouts


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_state_is_zeros_by_default(kind, num_layers):
    layer = kind(3, 4, num_layers, bidirectional=True, seed=0)
    x = normal(5, 2, 3)
    zeros = each(np.zeros_like, normal_state(layer, 2))
    for got, want in zip(layer(x), layer(x, zeros), strict=True):
        assert_same_bits(got, want)
    got, want = layer.vjp(x), layer.vjp(x, zeros)
    ones = np.ones_like(got[0])
    assert_all_same_bits(got[2](ones, None), want[2](ones, None))


@pytest.mark.parametrize("kind", LAYERS)
def test_batch_first_is_the_same_with_axes_swapped(kind):
    options = {"num_layers": 2, "bidirectional": True, "seed": 0}
    time_first, batch_first = kind(3, 4, **options), kind(3, 4, batch_first=True, **options)
    x, state, lengths = normal(5, 2, 3), normal_state(time_first, 2), [5, 2]
    reset = normal(5, 2) > 0.5
    d_output, d_final = normal(5, 2, 8), normal_state(time_first, 2, seed=1)
    output, final, vjp = time_first.vjp(x, state, lengths=lengths, reset=reset)
    output_2, final_2, vjp_2 = batch_first.vjp(
        x.swapaxes(0, 1), state, lengths=lengths, reset=reset.swapaxes(0, 1)
    )
    assert_same_bits(output_2.swapaxes(0, 1), output)
    assert_same_bits(final_2, final)
    gradients = vjp_2(d_output.swapaxes(0, 1), d_final)
    gradients["x"] = gradients["x"].swapaxes(0, 1)
    assert_all_same_bits(gradients, vjp(d_output, d_final))
    called = batch_first(x.swapaxes(0, 1), state, lengths=lengths, reset=reset.swapaxes(0, 1))
    assert_same_bits(called[0], output_2)
    assert_same_bits(called[1], final_2)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [None, 0, 3, np.uint8(3)])
def test_without_a_batch_is_the_same_as_a_batch_of_one(kind, batch_first, length):
    """The axis of the batch is absent everywhere: lengths is one integer, reset is (L)."""
    options = {"num_layers": 2, "bidirectional": True, "seed": 0}
    batched, layer = kind(3, 4, **options), kind(3, 4, batch_first=batch_first, **options)
    x, state, reset = normal(5, 3), normal_state(layer), normal(5) > 0
    d_output, d_final = normal(5, 8), normal_state(layer, seed=1)

    def one(state):
        return each(lambda a: a[:, None], state)

    lengths = None if length is None else [length]
    how = {"lengths": lengths, "reset": reset[:, None]}
    output, final, vjp = batched.vjp(x[:, None], one(state), **how)
    output_2, final_2, vjp_2 = layer.vjp(x, state, lengths=length, reset=reset)
    assert_same_bits(output_2, output[:, 0])
    assert_same_bits(final_2, each(lambda a: a[:, 0], final))
    want = vjp(d_output[:, None], one(d_final))
    want |= {name: want[name][:, 0] for name in ("x", *named(state, "0"))}
    assert_all_same_bits(vjp_2(d_output, d_final), want)
    called = layer(x, state, lengths=length, reset=reset)
    assert_same_bits(called[0], output_2)
    assert_same_bits(called[1], final_2)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_takes_a_batch_or_none(kind):
    cell = kind(3, 4, seed=0)
    x, state = normal(2, 3), each(lambda a: a[0], normal_state(cell, 2))
    batched = cell(x, state)
    for n in range(2):
        alone = cell(x[n], each(lambda a, n=n: a[n], state))
        assert_same_bits(alone, each(lambda a, n=n: a[n], batched))
    assert_same_bits(cell(x), cell(x, each(np.zeros_like, state)))
    for a in parts(cell(x[:0], each(lambda a: a[:0], state))):
        assert a.shape == (0, 4)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_not_an_array_is_read_as_one(kind):
    layer = kind(2, 4, seed=0, dtype="float64")
    x = [[1.0, 2.0], [3.0, 4.0]]
    state = normal_state(layer, dtype="float64")
    output, final = layer(x, each(np.ndarray.tolist, state), lengths=1, reset=[False, True])
    want, want_final = layer(np.array(x), state, np.array(1), np.array([False, True]))
    assert_same_bits(output, want)
    assert_same_bits(final, want_final)


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "int64", "uint64"])
def test_lengths_of_any_integer_type(kind):
    layer = elman.GRU(3, 4, seed=0)
    x = normal(5, 3, 3)
    want = layer(x, lengths=[0, 5, 2])
    for got, expected in zip(layer(x, lengths=np.array([0, 5, 2], kind)), want, strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_results_are_arrays_of_their_own(kind, num_layers):
    """Writing into them changes neither the layer, nor its arguments, nor gradients to come."""
    layer = kind(3, 4, num_layers, bidirectional=True, seed=0)
    x, state = normal(5, 2, 3), normal_state(layer, 2)
    before = x.copy(), each(np.copy, state)
    output, final, vjp = layer.vjp(x, state, lengths=[0, 5])
    d_output, d_final = normal(5, 2, 8), normal_state(layer, 2, seed=1)
    want = {name: g.copy() for name, g in vjp(d_output, d_final).items()}
    for a in (output, *parts(final), *vjp(d_output, d_final).values()):
        a[:] = 0
    assert_same_bits(x, before[0])
    assert_same_bits(state, before[1])
    assert_all_same_bits(vjp(d_output, d_final), want)


def test_the_two_states_are_arrays_of_their_own():
    """Writing into one does not change the other."""
    _, (h_n, c_n) = elman.LSTM(3, 4, seed=0)(normal(5, 2, 3))
    assert not np.shares_memory(h_n, c_n)
    h, c = elman.LSTMCell(3, 4, seed=0)(normal(2, 3))
    assert not np.shares_memory(h, c)


# vjp


@pytest.mark.parametrize("kind", LAYERS)
def test_vjp_outlives_the_weights_it_was_made_with(kind):
    layer = kind(3, 4, 2, seed=0)
    output, _, vjp = layer.vjp(normal(5, 2, 3))
    ones = np.ones_like(output)
    want = vjp(ones, None)
    layer.load_state_dict({k: 2 * w for k, w in layer.state_dict().items()})
    assert_all_same_bits(vjp(ones, None), want)


@pytest.mark.parametrize("kind", LAYERS)
def test_vjp_is_linear(kind):
    layer = kind(3, 4, 2, bidirectional=True, dtype="float64", seed=0)
    output, final, vjp = layer.vjp(normal(5, 2, 3, dtype="float64"))
    d_output, d_final = np.sin(output), each(np.cos, final)
    only_output, only_final = vjp(d_output, None), vjp(None, d_final)
    both = vjp(d_output, each(lambda d: 2 * d, d_final))
    assert_all_close(both, {k: g + 2 * only_final[k] for k, g in only_output.items()})
    nothing = vjp(None, None)
    assert list(nothing) == list(both)
    assert not any(g.any() for g in nothing.values())


def test_a_gradient_that_is_none_is_zeros():
    layer = elman.LSTM(3, 4, 2, bidirectional=True, proj_size=2, seed=0)
    _, final, vjp = layer.vjp(normal(5, 2, 3))
    d_h_n, d_c_n = final
    zeros = each(np.zeros_like, final)
    for given, whole in (((d_h_n, None), (d_h_n, zeros[1])), ((None, d_c_n), (zeros[0], d_c_n))):
        assert_all_same_bits(vjp(None, given), vjp(None, whole))
    assert_all_same_bits(vjp(None, (None, None)), vjp(None, None))


# Dropout


@pytest.mark.parametrize("kind", [elman.GRU, elman.LSTM])
def test_dropout_of_everything_gives_the_layers_above_zeros(kind):
    layer = kind(3, 4, 3, dropout=1.0, seed=0, dtype="float64").train()
    x, state = normal(5, 2, 3, dtype="float64"), normal_state(layer, 2, dtype="float64")
    output, final, vjp = layer.vjp(x, state)
    masks = [np.zeros((5, 2, 4))] * 2
    want, want_final, want_vjp = run(layer.spec.cell, layer.state_dict(), x, state, masks=masks)
    assert_close(output, want)
    assert_close(final, want_final)
    d_output, d_final = np.sin(output), each(np.cos, final)
    assert_all_close(vjp(d_output, d_final), want_vjp(d_output, d_final))


def identity(num_layers, width, dropout, seed):
    """Layers that pass their input on, so that the masks can be read off the output."""
    layer = elman.RNN(
        width, width, num_layers, "relu", False, dropout=dropout, seed=seed, dtype="float64"
    )
    weights = {k: np.zeros_like(w) for k, w in layer.state_dict().items()}
    for k in range(num_layers):
        weights[f"weight_ih_l{k}"] = np.eye(width)
    layer.load_state_dict(weights)
    return layer.train()


def test_dropout_draws_a_mask_for_each_step_row_and_unit_and_scales_what_it_keeps():
    layer = identity(2, 50, 0.25, seed=0)
    ones = np.ones((40, 10, 50))
    output, h_n = layer(ones)
    assert set(np.unique(output)) == {0, 1 / 0.75}
    dropped = output == 0
    n = dropped.size
    assert abs(dropped.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)
    # Neighbours along no axis share a mask.
    for axis in range(3):
        agree = np.mean(np.diff(dropped, axis=axis) == 0)
        assert abs(agree - (0.25**2 + 0.75**2)) < 0.02
    assert (h_n[0] == 1).all()  # the states are not dropped
    assert_same_bits(h_n[1], output[-1])  # nor is the last layer's output
    again, _ = layer(ones)
    assert not np.array_equal(again, output)


@pytest.mark.parametrize(("kind", "options"), [(elman.GRU, {}), (elman.LSTM, {"proj_size": 4})])
def test_gradients_pass_the_masks_that_were_drawn(kind, options):
    options = {"dropout": 0.5, "bidirectional": True, "seed": 0, "dtype": "float64", **options}
    layer = kind(3, 6, 2, **options).train()
    x, state = normal(5, 2, 3, dtype="float64"), normal_state(layer, 2, dtype="float64")
    # The same seed draws the same masks: weights first, in the constructor, then the masks.
    rng = np.random.default_rng(0)
    for w in layer.state_dict().values():
        rng.uniform(size=w.shape)
    mask = (rng.random((5, 2, 2 * layer.spec.output_size)) >= 0.5) / 0.5
    output, final, vjp = layer.vjp(x, state)
    want, want_final, want_vjp = run(layer.spec.cell, layer.state_dict(), x, state, masks=[mask])
    assert_close(output, want)
    assert_close(final, want_final)
    d_output, d_final = np.sin(output), each(np.cos, final)
    gradients = vjp(d_output, d_final)
    assert_all_close(gradients, want_vjp(d_output, d_final))
    assert_all_same_bits(vjp(d_output, d_final), gradients)


def test_the_same_seed_drops_the_same():
    x = np.ones((4, 2, 30))
    for call in (lambda layer: layer(x)[0], lambda layer: layer.vjp(x)[0]):
        first, second = identity(3, 30, 0.5, 1), identity(3, 30, 0.5, 1)
        for _ in range(2):
            assert_same_bits(call(first), call(second))


def test_dropout_takes_effect_in_training_alone():
    options = {"num_layers": 2, "seed": 0}
    layer, plain = elman.GRU(3, 4, dropout=0.5, **options), elman.GRU(3, 4, **options)
    x = normal(5, 2, 3)
    want = plain(x)[0]
    assert layer.training is False
    assert_same_bits(layer(x)[0], want)
    assert layer.train() is layer
    assert layer.training is True
    assert not np.array_equal(layer(x)[0], want)
    assert layer.eval() is layer
    assert_same_bits(layer(x)[0], want)
    assert_same_bits(plain.train()(x)[0], want)  # p = 0
    one = elman.GRU(3, 4, dropout=0.5, seed=0)  # nothing lies between one layer
    assert_same_bits(one.train()(x)[0], one.eval()(x)[0])


@pytest.mark.parametrize("names", [["x", "h_0"], ["x", "h_0", "lengths", "reset"]])
def test_the_caller_may_change_what_it_gave_before_vjp_is_called(names):
    layer = elman.GRU(3, 4, seed=0)
    rng = np.random.default_rng(0)
    all_of_them = {
        "x": rng.standard_normal((5, 2, 3), dtype="float32"),
        "h_0": rng.standard_normal((1, 2, 4), dtype="float32"),
        "lengths": np.array([5, 3]),
        "reset": rng.random((5, 2)) < 0.3,
    }
    given = {name: all_of_them[name] for name in names}
    d_output = np.ones((5, 2, 4), "float32")
    expected = layer.vjp(**given)[2](d_output, None)
    _, _, vjp = layer.vjp(**given)
    for array in given.values():
        array[:] = 0
    assert_all_same_bits(vjp(d_output, None), expected)


# Calls in one call


def nothing_but_plain(layer, monkeypatch):
    """From now on a call of the layer that is not for the engine alone is an error."""

    def other(*_):
        raise AssertionError("another way was taken")

    monkeypatch.setattr(layer, "_step" if type(layer) in CELLS else "_run", other)


def one_by_one(layer, x, state):
    """Layer's vjp, run layer by layer: a reset is nothing for a single call, even of none."""
    return layer.vjp(x, state, reset=np.zeros(x.shape[:-1], bool))


def shapes_for(layer):
    """Of x, with the batch's of the states."""
    for batch in ((3,), (), (40,)):  # the last has a result in the engine's memory
        yield batch, (*batch, 60, 5) if layer.spec.batch_first else (60, *batch, 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_call_in_one_call(kind, options, batch_first, dtype, monkeypatch):
    layer = kind(5, 7, batch_first=batch_first, dropout=0.5, dtype=dtype, seed=0, **options)
    nothing_but_plain(layer, monkeypatch)
    for batch, shape in shapes_for(layer):
        x = normal(*shape, dtype=dtype)
        for state in (None, normal_state(layer, *batch, dtype=dtype)):
            output, final = layer(x, state)
            want_output, want_final, _ = one_by_one(layer, x, state)
            assert_same_bits(output, want_output)
            assert output.strides == want_output.strides
            for got, want in zip(parts(final), parts(want_final), strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "recompute": True}]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_vjp_in_one_call_each_way(kind, options, batch_first, dtype):
    layer = kind(5, 7, batch_first=batch_first, dtype=dtype, seed=0, **options)
    if kind is elman.LSTM and options.get("bidirectional"):
        layer = kind(5, 7, 2, True, batch_first, bidirectional=True, proj_size=3, dtype=dtype)
    for batch, shape in shapes_for(layer):
        x, d_final = normal(*shape, dtype=dtype), normal_state(layer, *batch, dtype=dtype, seed=8)
        for state in (None, normal_state(layer, *batch, dtype=dtype)):
            output, final, vjp = layer.vjp(x, state)
            want_output, want_final, want_vjp = one_by_one(layer, x, state)
            assert_same_bits(output, want_output)
            for got, want in zip(parts(final), parts(want_final), strict=True):
                assert_same_bits(got, want)
            d_output = normal(*output.shape, dtype=dtype, seed=9)
            for d in ((d_output, d_final), (d_output, None), (None, d_final), (None, None)):
                got, want = vjp(*d), want_vjp(*d)
                assert list(got) == list(want)
                assert_all_same_bits(got, want)
                assert got["x"].strides == want["x"].strides


def test_vjp_in_one_call_takes_gradients_of_any_layout():
    layer = elman.LSTM(3, 4, seed=0)
    output, (h_n, c_n), vjp = layer.vjp(normal(5, 2, 3))
    d_output, d_c = normal(*output.shape, seed=1), normal(*c_n.shape, seed=2)
    want = vjp(d_output, (np.zeros_like(h_n), d_c))
    apart = np.repeat(d_output, 2, -1)[..., ::2]
    for got in (
        vjp(apart, (None, d_c)),
        vjp(list(d_output), [None, d_c]),
        vjp(d_output.copy("F"), (np.zeros_like(h_n), d_c.copy("F"))),
    ):
        assert_all_same_bits(got, want)
    with pytest.raises(ValueError, match=re.escape("LSTM: d_output must have shape (5, 2, 4)")):
        vjp(d_output[:4], None)
    with pytest.raises(ValueError, match=re.escape("LSTM: d_c_n must have shape (1, 2, 4)")):
        vjp(d_output, (None, d_c[0]))
    with pytest.raises(TypeError, match="LSTM: d_h_n must be float32"):
        vjp(None, (h_n.astype(float), None))
    with pytest.raises(TypeError, match=re.escape("LSTM: expected (d_h_n, d_c_n)")):
        vjp(d_output, d_c)


def test_a_projection_in_one_call(monkeypatch):
    layer = elman.LSTM(5, 7, 2, bidirectional=True, proj_size=3, seed=0)
    nothing_but_plain(layer, monkeypatch)
    x, state = normal(6, 3, 5), normal_state(layer, 3)
    output, final = layer(x, state)
    want_output, want_final, _ = one_by_one(layer, x, state)
    for got, want in zip((output, *final), (want_output, *want_final), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_in_one_call(kind, monkeypatch):
    cell = kind(5, 7, seed=0)
    wants = {}
    for batch in ((), (1,), (3,)):
        x = normal(*batch, 5)
        for is_given in (False, True):
            state = [normal(*batch, 7, seed=s) for s in range(len(cell.spec.cell.states))]
            state = (state[0] if len(state) == 1 else tuple(state)) if is_given else None
            # Features that lie apart take the other way.
            wants[batch, is_given] = x, state, cell(x[..., None].repeat(2, -1)[..., 0], state)
    nothing_but_plain(cell, monkeypatch)
    for x, state, want in wants.values():
        for got, expected in zip(parts(cell(x, state)), parts(want), strict=True):
            assert_same_bits(got, expected)


def unusual(layer):
    """Calls that are not for the engine alone, and the same call otherwise."""
    x, (h_0,) = normal(5, 2, 3), parts(normal_state(layer, 2))
    apart = normal(5, 2, 6)[:, :, ::2]
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view("float32").reshape(x.shape)
    unaligned[:] = x
    return {
        "a list of rows": ((list(x), h_0), (x, h_0)),
        "features apart": ((apart, h_0), (apart.copy(), h_0)),
        "a state's features apart": ((x, np.repeat(h_0, 2, -1)[..., ::2]), (x, h_0)),
        "unaligned": ((unaligned, h_0), (x, h_0)),
        "full lengths": ((x, h_0, [5, 5]), (x, h_0)),
        "no reset": ((x, h_0, None, np.zeros((5, 2), bool)), (x, h_0)),
    }


@pytest.mark.parametrize("case", unusual(elman.GRU(3, 4, 2)))
def test_what_is_not_for_one_call(case):
    layer = elman.GRU(3, 4, 2, seed=0)
    other, plain = unusual(layer)[case]
    assert layer._plain(*other[:2], 1, *(*other[2:], None, None)[:2], False) is None
    for got, want in zip(layer(*other), layer(*plain), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3), (0, 3)])
def test_no_steps_and_no_rows(shape):
    layer = elman.LSTM(3, 4, seed=0)
    output, (h_n, c_n) = layer(np.zeros(shape, "float32"))
    assert output.shape == (*shape[:-1], 4)
    assert h_n.shape == c_n.shape == (1, *shape[1:-1], 4)
    assert not h_n.any()


def test_dropout_of_a_layer_that_trains_is_not_for_one_call():
    layer = elman.GRU(3, 4, 2, dropout=0.5, seed=0)
    x = normal(5, 2, 3)
    want = layer(x)[0]
    assert np.any(layer.train()(x)[0] != want)
    assert np.any(layer.vjp(x)[0] != want)
    assert_same_bits(layer.eval()(x)[0], want)


def test_copies_take_the_weights_that_they_were_given():
    layer, other = elman.GRU(3, 4, seed=0), elman.GRU(3, 4, seed=1)
    x = normal(5, 2, 3)
    twin = copy.deepcopy(layer)
    layer.load_state_dict(other.state_dict())
    assert_same_bits(layer(x)[0], other(x)[0])
    assert np.any(twin(x)[0] != other(x)[0])
