"""The equations of cells.py: their values, and their gradients by finite differences."""

import math
import warnings

import numpy as np
import pytest
from reference import parts, whole

from elman import cells
from elman.spec import CELLS

H = 5
NAMES = list(CELLS)


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def rnn_tanh(x, u, h):
    return math.tanh(x[0] + u[0])


def rnn_relu(x, u, h):
    return max(0.0, x[0] + u[0])


def gru(x, u, h):
    r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
    n = math.tanh(x[2] + r * u[2])
    return (1 - z) * n + z * h


def gru_reset_before(x, u, h):
    z = sigmoid(x[1] + u[1])
    return (1 - z) * math.tanh(x[2] + u[2]) + z * h


def lstm(x, u, c):
    i, f, o = (sigmoid(x[k] + u[k]) for k in (0, 1, 3))
    c = f * c + i * math.tanh(x[2] + u[2])
    return o * math.tanh(c), c


SCALAR = {
    "rnn_tanh": rnn_tanh,
    "rnn_relu": rnn_relu,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "lstm": lstm,
}


def draw(cell, *leading, seed=0):
    """Gates of x, gates of h, and what the cell reads of the state before: h, or c."""
    rng = np.random.default_rng(seed)
    gates = len(cell.gates)
    return [rng.normal(size=(*leading, n * H)) for n in (gates, gates, 1)]


def run(cell, *inputs):
    """The state after a step, as a tuple: h', or h' and c'."""
    return parts(cell.forward(*inputs, np))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_values_are_those_of_scalar_arithmetic(name, leading):
    x, u, before = draw(CELLS[name], *leading)
    got = run(CELLS[name], x, u, before)
    assert [a.shape for a in got] == [before.shape] * len(CELLS[name].states)
    for place in np.ndindex(*before.shape):
        row, unit = place[:-1], place[-1]
        want = SCALAR[name](x[row][unit::H], u[row][unit::H], before[place])
        for a, value in zip(got, parts(want), strict=True):
            assert math.isclose(a[place], value, rel_tol=1e-14, abs_tol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_finite_differences(name, seed):
    cell = CELLS[name]
    inputs = draw(cell, 4, seed=seed)
    rng = np.random.default_rng(seed + 100)
    d = [rng.normal(size=(4, H)) for _ in cell.states]
    gradients = cell.backward(whole(d), *inputs, np)
    step = 1e-6
    for i, gradient in enumerate(gradients):
        assert gradient.shape == inputs[i].shape
        for place in np.ndindex(*inputs[i].shape):
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in inputs]
                moved[i][place] += sign * step
                after = run(cell, *moved)
                values.append(sum((d_s * s).sum() for d_s, s in zip(d, after, strict=True)))
            # The sum is good to 1e-15 and the quotient divides by 2e-6.
            assert math.isclose(gradient[place], (values[0] - values[1]) / (2 * step), abs_tol=1e-8)


def test_what_a_gate_that_waits_meets():
    """Its value by scalar arithmetic, and its gradients by finite differences."""
    cell, step = CELLS["gru_reset_before"], 1e-6
    x, u, h = inputs = draw(cell, 4)
    met = cell.gated(x, u[..., : 2 * H], h, np)
    for place in np.ndindex(*h.shape):
        assert math.isclose(met[place], sigmoid(x[place] + u[place]) * h[place], rel_tol=1e-14)
    d = np.random.default_rng(100).normal(size=h.shape)
    d_gates, d_h = cell.gated_backward(d, *inputs, np)
    for i, gradient in enumerate((d_gates, d_gates, d_h)):
        assert gradient.shape == inputs[i].shape
        for place in np.ndindex(*inputs[i].shape):
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in inputs]
                moved[i][place] += sign * step
                values.append((d * cell.gated(*moved, np)).sum())
            assert math.isclose(gradient[place], (values[0] - values[1]) / (2 * step), abs_tol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_saturates_without_a_warning(dtype):
    a = np.array([-1000, -30, 0, 30, 1000], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = cells.sigmoid(a, np)
    assert s.dtype == dtype
    assert s[[0, 2, 4]].tolist() == [0, 0.5, 1]
    assert s[1] < 1e-7
    assert s[3] > 1 - 1e-7


def test_relu_of_what_is_not_finite():
    a = np.array([math.nan, math.inf, -math.inf, -0.5, 0.0, 2.0])
    zero = np.zeros_like(a)
    np.testing.assert_array_equal(
        cells.rnn_relu(a, zero, zero, np), [math.nan, math.inf, 0, 0, 0, 2]
    )
    d_x, d_u, d_h = cells.rnn_relu_backward(zero + 3, a, zero, zero, np)
    np.testing.assert_array_equal(d_x, [3, 3, 0, 0, 0, 3])
    np.testing.assert_array_equal(d_u, d_x)
    np.testing.assert_array_equal(d_h, zero)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", [0, 1])
def test_nan_in_a_gate_comes_out_of_its_unit_alone(name, argument):
    inputs = draw(CELLS[name], 2)
    inputs[argument][1, -2] = math.nan  # the last gate of unit H-2
    h, *c = run(CELLS[name], *inputs)
    assert np.argwhere(np.isnan(h)).tolist() == [[1, H - 2]]
    assert not any(np.isnan(a).any() for a in c)  # an LSTM's last gate is beyond c


@pytest.mark.parametrize(("update", "expected"), [(1000, 0.25), (-1000, math.tanh(0.5))])
def test_gru_with_its_update_gate_saturated(update, expected):
    """Z = 1 keeps the state, z = 0 takes the candidate."""
    x = np.array([0.0, update, 0.5])
    assert cells.gru(x, np.zeros(3), np.array([0.25]), np).tolist() == [expected]


@pytest.mark.parametrize(
    ("forget", "input", "expected"), [(1000, -1000, 0.25), (-1000, 1000, math.tanh(0.5))]
)
def test_lstm_with_its_gates_saturated(forget, input, expected):
    """f = 1 and i = 0 keep c, f = 0 and i = 1 take the candidate; o = 0 hides it."""
    x, c = np.array([input, forget, 0.5, 1000.0]), np.array([0.25])
    h, after = cells.lstm(x, np.zeros(4), c, np)
    assert (h.tolist(), after.tolist()) == ([math.tanh(expected)], [expected])
    x[-1] = -1000
    h, again = cells.lstm(x, np.zeros(4), c, np)
    assert (h.tolist(), again.tolist()) == ([0], [expected])


def test_a_projection():
    h, w_hr = np.random.default_rng(0).normal(size=(2, 3, H)), np.ones((2, H))
    w_hr[1, 1:] = 0
    np.testing.assert_allclose(
        cells.project(h, w_hr), np.stack([h.sum(-1), h[..., 0]], -1), rtol=1e-14, atol=1e-15
    )
