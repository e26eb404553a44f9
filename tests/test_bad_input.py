"""Bad input to the NumPy package: a clear error before anything is computed, nothing changed."""

import numpy as np
import pytest
from reference import assert_all_same_bits, assert_same_bits

import elman

LAYERS = [elman.RNN, elman.GRU, elman.LSTM]
CELLS = [elman.RNNCell, elman.GRUCell, elman.LSTMCell]


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


# Constructors


DTYPES = "float16, bfloat16, float32 or float64"


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
        ({"hidden_size": -2}, ValueError, "hidden_size must be at least 1, got -2"),
        ({"input_size": 2.0}, TypeError, "input_size must be an int, got 2.0"),
        ({"hidden_size": "4"}, TypeError, "hidden_size must be an int, got '4'"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an int, got True"),
        ({"bias": 1}, TypeError, "bias must be a bool, got 1"),
        ({"bias": "relu"}, TypeError, "bias must be a bool, got 'relu'"),
        ({"dtype": "int32"}, TypeError, f"dtype must be {DTYPES}, got int32"),
        ({"dtype": ">f4"}, TypeError, f"dtype must be {DTYPES}, got >f4"),
    ],
)
def test_arguments_of_every_constructor(kind, arguments, error, message):
    title = kind.__name__ if "dtype" in arguments else kind.__name__.removesuffix("Cell")
    with pytest.raises(error, match=f"^{title}(Cell)?: {message}$"):
        kind(**{"input_size": 3, "hidden_size": 4} | arguments)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"num_layers": 1.5}, TypeError, "num_layers must be an int, got 1.5"),
        ({"batch_first": 1}, TypeError, "batch_first must be a bool, got 1"),
        ({"bidirectional": None}, TypeError, "bidirectional must be a bool, got None"),
        ({"dropout": 1.5}, ValueError, r"dropout must lie in \[0, 1\], got 1.5"),
        ({"dropout": -0.1}, ValueError, r"dropout must lie in \[0, 1\], got -0.1"),
        ({"dropout": float("nan")}, ValueError, r"dropout must lie in \[0, 1\], got nan"),
        ({"dropout": True}, TypeError, "dropout must be a number, got True"),
        ({"dropout": "0.5"}, TypeError, "dropout must be a number, got '0.5'"),
    ],
)
def test_arguments_of_a_layer(kind, arguments, error, message):
    with pytest.raises(error, match=f"^{kind.__name__}: {message}$"):
        kind(3, 4, **arguments)


@pytest.mark.parametrize(
    ("proj_size", "error", "message"),
    [
        (4, ValueError, "proj_size must lie between 0 and hidden_size - 1 = 3, got 4"),
        (-1, ValueError, "proj_size must lie between 0 and hidden_size - 1 = 3, got -1"),
        (1.0, TypeError, "proj_size must be an int, got 1.0"),
        (True, TypeError, "proj_size must be an int, got True"),
    ],
)
def test_a_projection_that_is_none(proj_size, error, message):
    with pytest.raises(error, match=f"^LSTM: {message}$"):
        elman.LSTM(3, 4, proj_size=proj_size)


@pytest.mark.parametrize("kind", [elman.RNN, elman.RNNCell])
@pytest.mark.parametrize("name", ["sigmoid", "Tanh", "", None, 3])
def test_an_unknown_nonlinearity(kind, name):
    message = f"^{kind.__name__}: nonlinearity must be 'tanh' or 'relu', got {name!r}$"
    with pytest.raises(ValueError, match=message):
        kind(3, 4, nonlinearity=name)


# Weights


def without(weights, name):
    return {k: w for k, w in weights.items() if k != name}


WEIGHT_ERRORS = {
    "missing": (
        lambda w: without(w, "bias_hh"),
        ValueError,
        r"weights missing: \['bias_hh'\], unexpected: \[\]",
    ),
    "unexpected": (
        lambda w: w | {"weight_hr": zeros(1)},
        ValueError,
        r"weights missing: \[\], unexpected: \['weight_hr'\]",
    ),
    "misshapen": (
        lambda w: w | {"weight_hh": w["weight_hh"].T.copy()},
        ValueError,
        r"weight_hh must have shape \(12, 4\), got \(4, 12\)",
    ),
    "one bias of another size": (
        lambda w: w | {"bias_hh": zeros(13)},
        ValueError,
        r"bias_hh must have shape \(12,\), got \(13,\)",
    ),
    "of another dtype": (
        lambda w: w | {"bias_hh": zeros(12, dtype="float64")},
        TypeError,
        "bias_hh must be float32, got float64",
    ),
}


def test_weights_with_a_projection_and_without():
    plain, projected = elman.LSTM(3, 4), elman.LSTM(3, 4, proj_size=2)
    missing = r"weights missing: \['weight_hr_l0'\], unexpected: \[\]"
    with pytest.raises(ValueError, match=f"^LSTM: {missing}$"):
        projected.load_state_dict(plain.state_dict())
    weights = plain.state_dict() | {"weight_hr_l0": zeros(2, 4)}
    with pytest.raises(ValueError, match=r"^LSTM: weight_hh_l0 must have shape \(16, 2\), got"):
        projected.load_state_dict(weights)
    weights = projected.state_dict() | {"weight_hr_l0": zeros(4, 2)}
    with pytest.raises(ValueError, match=r"^LSTM: weight_hr_l0 must have shape \(2, 4\), got"):
        projected.load_state_dict(weights)


@pytest.mark.parametrize("kind", [elman.GRU, elman.GRUCell])
@pytest.mark.parametrize("case", WEIGHT_ERRORS)
def test_weights_that_do_not_fit_change_nothing(kind, case):
    change, error, message = WEIGHT_ERRORS[case]
    suffix = "_l0" if kind is elman.GRU else ""
    layer = kind(3, 4, seed=0)
    before, x = layer.state_dict(), np.ones((5, 3), "float32")
    output = layer(x)
    # All the others are new and would fit.
    good = {k.removesuffix(suffix): w + 1 for k, w in before.items()}
    bad = {f"{k}{suffix}": w for k, w in change(good).items()}
    for name in ("bias_hh", "weight_hh", "weight_hr"):
        message = message.replace(name, name + suffix)
    with pytest.raises(error, match=f"^{kind.__name__}: {message}$"):
        layer.load_state_dict(bad)
    assert_all_same_bits(layer.state_dict(), before)
    for got, want in zip(layer(x), output, strict=True):
        assert_same_bits(got, want)


# Calls

# For a layer GRU(3, 4, num_layers=2, bidirectional=True) and x of (5, 2, 3) unless said. An LSTM is
# given what stands here as h_0 beside a c_0 that fits, and as c_0 beside an h_0.
CALL_ERRORS = [
    ({"x": zeros(3)}, ValueError, r"x must be \(L, N, D\) or \(L, D\) with D = 3, got \(3,\)"),
    ({"x": zeros()}, ValueError, r"x must be \(L, N, D\) or \(L, D\) with D = 3, got \(\)"),
    ({"x": zeros(1, 5, 2, 3)}, ValueError, r"x must be .* with D = 3, got \(1, 5, 2, 3\)"),
    ({"x": zeros(5, 2, 4)}, ValueError, r"x must be .* with D = 3, got \(5, 2, 4\)"),
    ({"x": zeros(5, 4)}, ValueError, r"x must be .* with D = 3, got \(5, 4\)"),
    ({"x": zeros(5, 2, 0)}, ValueError, r"x must be .* with D = 3, got \(5, 2, 0\)"),
    ({"x": zeros(5, 2, 3, dtype="float64")}, TypeError, "x must be float32, got float64"),
    ({"x": zeros(5, 2, 3, dtype="int64")}, TypeError, "x must be float32, got int64"),
    ({"x": zeros(5, 2, 3, dtype=">f4")}, TypeError, "x must be float32, got >f4"),
    ({"x": zeros(5, 2, 3, dtype="complex64")}, TypeError, "x must be float32, got complex64"),
    ({"x": None}, TypeError, "x must be float32, got object"),
    ({"h_0": zeros(4, 3, 4)}, ValueError, r"h_0 must have shape \(4, 2, 4\), got \(4, 3, 4\)"),
    ({"h_0": zeros(2, 2, 4)}, ValueError, r"h_0 must have shape \(4, 2, 4\), got \(2, 2, 4\)"),
    ({"h_0": zeros(4, 2, 5)}, ValueError, r"h_0 must have shape \(4, 2, 4\), got \(4, 2, 5\)"),
    ({"h_0": zeros(4, 4)}, ValueError, r"h_0 must have shape \(4, 2, 4\), got \(4, 4\)"),
    (
        {"x": zeros(5, 3), "h_0": zeros(4, 1, 4)},
        ValueError,
        r"h_0 must have shape \(4, 4\), got \(4, 1, 4\)",
    ),
    ({"h_0": zeros(4, 2, 4, dtype="float64")}, TypeError, "h_0 must be float32, got float64"),
    ({"lengths": [5, 6]}, ValueError, "lengths must lie between 0 and L = 5, got 6 for row 1"),
    ({"lengths": [-1, 5]}, ValueError, "lengths must lie between 0 and L = 5, got -1 for row 0"),
    ({"lengths": [5]}, ValueError, r"lengths must be integers of shape \(2,\), got .*\(1,\)"),
    ({"lengths": 5}, ValueError, r"lengths must be integers of shape \(2,\), got .*\(\)"),
    ({"lengths": [[5, 5]]}, ValueError, r"lengths must be integers of shape \(2,\), got .*\(1, 2"),
    ({"lengths": [5.0, 2.0]}, ValueError, r"lengths must .* \(2,\), got float64 of \(2,\)$"),
    ({"lengths": [True, True]}, ValueError, r"lengths must .* \(2,\), got bool of \(2,\)$"),
    (
        {"x": zeros(5, 3), "lengths": [5]},
        ValueError,
        r"lengths must be integers of shape \(\), got integers of \(1,\)",
    ),
    (
        {"x": zeros(5, 3), "lengths": 6},
        ValueError,
        "lengths must lie between 0 and L = 5, got 6 for row 0",
    ),
    (
        {"reset": zeros(2, 5, dtype=bool)},
        ValueError,
        r"reset must be booleans of shape \(5, 2\), got booleans of \(2, 5\)",
    ),
    (
        {"reset": zeros(5, dtype=bool)},
        ValueError,
        r"reset must be booleans of shape \(5, 2\), got booleans of \(5,\)",
    ),
    (
        {"reset": zeros(5, 2)},
        ValueError,
        r"reset must be booleans of shape \(5, 2\), got float32 of \(5, 2\)",
    ),
    (
        {"x": zeros(5, 3), "reset": zeros(5, 1, dtype=bool)},
        ValueError,
        r"reset must be booleans of shape \(5,\), got booleans of \(5, 1\)",
    ),
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", ["__call__", "vjp"])
@pytest.mark.parametrize(("arguments", "error", "message"), CALL_ERRORS)
def test_arguments_of_a_call(kind, method, arguments, error, message):
    layer = kind(3, 4, num_layers=2, bidirectional=True, dropout=0.5, seed=0).train()
    twin = kind(3, 4, num_layers=2, bidirectional=True, dropout=0.5, seed=0).train()
    good = np.ones((5, 2, 3), "float32")
    for name in ("h_0", "c_0")[: len(layer.spec.cell.states) if "h_0" in arguments else 1]:
        call = {"x": good} | arguments
        if "h_0" in call and kind is elman.LSTM:
            fits = zeros(4, *call["x"].shape[1:-1], 4)
            bad = call.pop("h_0")
            call["states"] = (bad, fits) if name == "h_0" else (fits, bad)
        with pytest.raises(error, match=f"^{kind.__name__}: {message.replace('h_0', name)}"):
            getattr(layer, method)(**call)
    # Nothing has changed: weights, and the state of the random numbers.
    assert_all_same_bits(layer.state_dict(), twin.state_dict())
    assert_same_bits(layer(good)[0], twin(good)[0])


def test_axes_are_named_as_the_layer_takes_them():
    layer = elman.GRU(3, 4, batch_first=True)
    with pytest.raises(ValueError, match=r"^GRU: x must be \(N, L, D\) or \(L, D\) with D = 3"):
        layer(zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"^GRU: reset must be booleans of shape \(2, 5\)"):
        layer(zeros(2, 5, 3), reset=zeros(5, 2, dtype=bool))
    with pytest.raises(ValueError, match=r"^GRU: lengths must be integers of shape \(2,\)"):
        layer(zeros(2, 5, 3), lengths=[5] * 5)
    with pytest.raises(ValueError, match=r"^GRU: h_0 must have shape \(1, 2, 4\), got \(2, 1, 4\)"):
        layer(zeros(2, 5, 3), zeros(2, 1, 4))


NO_PAIRS = [
    (zeros(1, 2, 4), "<class 'numpy.ndarray'>"),
    ((zeros(1, 2, 4),), "1 of them"),
    ([zeros(1, 2, 4)] * 3, "3 of them"),
    ("hc", "<class 'str'>"),
]


@pytest.mark.parametrize(("states", "got"), NO_PAIRS)
def test_states_that_are_no_pair(states, got):
    layer, x = elman.LSTM(3, 4), zeros(5, 2, 3)
    for method in ("__call__", "vjp"):
        with pytest.raises(TypeError, match=rf"^LSTM: expected \(h_0, c_0\), got {got}$"):
            getattr(layer, method)(x, states)
    _, _, vjp = layer.vjp(x)
    with pytest.raises(TypeError, match=rf"^LSTM: expected \(d_h_n, d_c_n\), got {got}$"):
        vjp(None, states)
    with pytest.raises(TypeError, match=rf"^LSTMCell: expected \(h, c\), got {got}$"):
        elman.LSTMCell(3, 4)(x[0], states)


def test_states_of_a_layer_with_a_projection():
    layer, x = elman.LSTM(3, 4, proj_size=2), zeros(5, 2, 3)
    with pytest.raises(
        ValueError, match=r"^LSTM: h_0 must have shape \(1, 2, 2\), got \(1, 2, 4\)$"
    ):
        layer(x, (zeros(1, 2, 4), zeros(1, 2, 4)))
    with pytest.raises(
        ValueError, match=r"^LSTM: c_0 must have shape \(1, 2, 4\), got \(1, 2, 2\)$"
    ):
        layer(x, (zeros(1, 2, 2), zeros(1, 2, 2)))
    _, _, vjp = layer.vjp(x)
    with pytest.raises(ValueError, match=r"^LSTM: d_output must have shape \(5, 2, 2\), got"):
        vjp(zeros(5, 2, 4), None)
    with pytest.raises(ValueError, match=r"^LSTM: d_c_n must have shape \(1, 2, 4\), got"):
        vjp(None, (zeros(1, 2, 2), zeros(1, 2, 2)))


@pytest.mark.parametrize("huge", [2**63, 2**64 - 1])
def test_a_length_past_what_the_engine_counts_with(huge):
    message = f"^GRU: lengths must lie between 0 and L = 5, got {huge} for row 1$"
    with pytest.raises(ValueError, match=message):
        elman.GRU(3, 4)(zeros(5, 2, 3), lengths=np.array([5, huge], "uint64"))
    with pytest.raises(ValueError, match=message.replace("row 1", "row 0")):
        elman.GRU(3, 4)(zeros(5, 3), lengths=np.uint64(huge))


def test_lengths_of_any_integers():
    layer, x = elman.GRU(3, 4, seed=0), np.ones((5, 2, 3), "float32")
    want = layer(x, lengths=[5, 2])[0]
    for dtype in ("int8", "uint8", "int16", "uint32", "uint64", ">i4"):
        assert_same_bits(layer(x, lengths=np.array([5, 2], dtype))[0], want)


def masked(*shape, dtype="float32"):
    return np.ma.masked_array(zeros(*shape, dtype=dtype), mask=True)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_masked_arrays(kind):
    """Whose mask NumPy would drop."""

    def message(name):
        lost = "is a masked array, and its mask would be lost: say by lengths where rows end, or"
        return rf"^{kind.__name__}: {name} {lost} give {name}\.filled\(\)$"

    is_cell, layer = kind in CELLS, kind(3, 4, seed=0)
    x, state, name = (zeros(2, 3), (2, 4), "h") if is_cell else (zeros(5, 2, 3), (1, 2, 4), "h_0")
    first = masked(*state) if len(layer.spec.cell.states) == 1 else (masked(*state), zeros(*state))
    calls = {"x": (masked(*x.shape),), name: (x, first)}
    if not is_cell:
        calls["lengths"] = (x, None, masked(2, dtype="int64"))
        calls["reset"] = (x, None, None, masked(5, 2, dtype="bool"))
    for name, arguments in calls.items():
        for call in (layer,) if is_cell else (layer, layer.vjp):
            with pytest.raises(TypeError, match=message(name)):
                call(*arguments)
    weights = layer.state_dict()
    name = next(iter(weights))
    with pytest.raises(TypeError, match=message(name)):
        layer.load_state_dict(weights | {name: np.ma.masked_array(weights[name])})


# Memory


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("sizes", [(2**31 - 1, 2**29 - 1), (2**31 - 1, 2**28), (2**24, 2**24)])
def test_a_layer_that_no_memory_holds(kind, sizes):
    D, H = sizes
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind.__name__.removesuffix("Cell")]
    count = gates * H * (D + H + 2)
    with pytest.raises(
        MemoryError, match=f"^{kind.__name__}: not enough memory for {count} weights$"
    ):
        kind(D, H)


def test_a_call_that_no_memory_holds():
    layer, cell = elman.GRU(1, 1, seed=0), elman.GRUCell(1, 1, seed=0)
    for shape in ((2**30, 2**30, 1), (1, 2**45, 1), (2**45, 1)):
        x = np.broadcast_to(np.float32(1), shape)
        message = rf"not enough memory for a call with x of shape \({str(shape)[1:-1]}\)$"
        for call in (layer, layer.vjp):
            with pytest.raises(MemoryError, match=f"^GRU: {message}"):
                call(x)
    with pytest.raises(MemoryError, match=f"^GRUCell: {message}"):
        cell(x)
    message = "^RNN: not enough memory for a stream of 2147483647 rows$"
    with pytest.raises(MemoryError, match=message):
        elman.RNN(1, 64, num_layers=300).stream(2**31 - 1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("name", "gradient", "error", "message"),
    [
        ("d_output", zeros(5, 2, 4), ValueError, r"must have shape \(5, 2, 8\), got \(5, 2, 4\)"),
        ("d_output", zeros(2, 5, 8), ValueError, r"must have shape \(5, 2, 8\), got \(2, 5, 8\)"),
        ("d_output", 1.0, TypeError, "must be float32, got float64"),
        ("d_h_n", zeros(2, 4), ValueError, r"must have shape \(2, 2, 4\), got \(2, 4\)"),
        ("d_h_n", zeros(2, 2, 4, dtype="float64"), TypeError, "must be float32, got float64"),
    ],
)
def test_arguments_of_vjp(kind, name, gradient, error, message):
    output, final, vjp = kind(3, 4, bidirectional=True, seed=0).vjp(np.ones((5, 2, 3), "float32"))
    want = vjp(output, final)
    if name == "d_output":
        calls = {name: (gradient, None)}
    elif kind is elman.LSTM:
        calls = {"d_h_n": (None, (gradient, None)), "d_c_n": (None, (None, gradient))}
    else:
        calls = {name: (None, gradient)}
    for name, arguments in calls.items():
        with pytest.raises(error, match=f"^{kind.__name__}: {name} {message}$"):
            vjp(*arguments)
    assert_all_same_bits(vjp(output, final), want)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("x", "h", "error", "message"),
    [
        (zeros(4), None, ValueError, r"x must be \(N, D\) or \(D\) with D = 3, got \(4,\)"),
        (zeros(), None, ValueError, r"x must be \(N, D\) or \(D\) with D = 3, got \(\)"),
        (zeros(1, 2, 3), None, ValueError, r"x must be .* with D = 3, got \(1, 2, 3\)"),
        (zeros(2, 3), zeros(3, 4), ValueError, r"h must have shape \(2, 4\), got \(3, 4\)"),
        (zeros(2, 3), zeros(4), ValueError, r"h must have shape \(2, 4\), got \(4,\)"),
        (zeros(3), zeros(1, 4), ValueError, r"h must have shape \(4,\), got \(1, 4\)"),
        (zeros(3, dtype="float64"), None, TypeError, "x must be float32, got float64"),
        (zeros(3), zeros(4, dtype="int32"), TypeError, "h must be float32, got int32"),
    ],
)
def test_arguments_of_a_cell(kind, x, h, error, message):
    cell = kind(3, 4)
    states = {"h": h}
    if kind is elman.LSTMCell and h is not None:
        fits = zeros(*x.shape[:-1], 4)
        states = {"h": (h, fits), "c": (fits, h)}
    for name, state in states.items():
        if name == "c":
            message = message.replace("h must", "c must")
        with pytest.raises(error, match=f"^{kind.__name__}: {message}$"):
            cell(x, state)


# Threads


@pytest.mark.parametrize("n", [1, 2, 64])
def test_the_number_of_threads_is_what_was_set(n):
    elman.set_num_threads(n)
    assert elman.get_num_threads() == n


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "expected at least 1, got 0"),
        (-3, ValueError, "expected at least 1, got -3"),
        (2.0, TypeError, "expected an int, got 2.0"),
        (True, TypeError, "expected an int, got True"),
        (None, TypeError, "expected an int, got None"),
    ],
)
def test_a_number_of_threads_that_is_none(n, error, message):
    elman.set_num_threads(2)
    with pytest.raises(error, match=f"^set_num_threads: {message}$"):
        elman.set_num_threads(n)
    assert elman.get_num_threads() == 2


def test_more_threads_than_there_could_be():
    elman.set_num_threads(10**12)
    output, _ = elman.GRU(3, 4)(zeros(5, 2, 3))
    assert np.isfinite(output).all()
