"""How far from the exact answer: exp, tanh and sigmoid, and layers beside torch's own.

``make accuracy`` looks at every float32, with each instruction set, and at longer sequences.
"""

import warnings

import mpmath
import numpy as np
import pytest
from doors import CELLS, layer_of, make, numpy_layer
from reference import parts

import elman
from elman import scan
from elman.spec import Weights

# The worst errors that `make accuracy` found, in units in the last place, and where.
WORST = {
    "tanh": (2.288415, float.fromhex("0x1.ae7a84p-3")),
    "sigmoid": (2.401877, float.fromhex("-0x1.0a111ap2")),
}
LOWEST = {"float32": -87.0, "float64": -708.0}  # below, sigmoid stays at e^LOWEST
EXACT = {"tanh": mpmath.tanh, "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x))}  # of mpmath's numbers


def tanh(x):
    """Of an RNN of one unit that does nothing else."""
    layer = elman.RNN(1, 1, bias=False, dtype=x.dtype)
    weights = {"weight_ih_l0": [[1]], "weight_hh_l0": [[0]]}
    layer.load_state_dict({k: np.array(w, x.dtype) for k, w in weights.items()})
    return layer(x.reshape(1, -1, 1))[0].reshape(-1)


def sigmoid(x):
    """Of a GRU of one unit: h' = (1 - z) * tanh(0) + z * 1 where only z's weight is not zero."""
    layer = elman.GRU(1, 1, bias=False, dtype=x.dtype)
    weights = {"weight_ih_l0": [[0], [1], [0]], "weight_hh_l0": [[0], [0], [0]]}
    layer.load_state_dict({k: np.array(w, x.dtype) for k, w in weights.items()})
    ones = np.ones((1, len(x), 1), x.dtype)
    return layer(x.reshape(1, -1, 1), ones)[0].reshape(-1)


FUNCTIONS = {"tanh": tanh, "sigmoid": sigmoid}


def ulp(exact, dtype):
    """The unit in the last place of a number's binade."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(exact)
    return np.ldexp(1.0, np.maximum(exponent, info.minexp + 1) - info.nmant - 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_so_many_th_float32(name):
    """The bits step by a prime, so that the last ones take every value."""
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    x = bits.view("float32")
    x = x[np.isfinite(x)]
    wide = x.astype("float64")
    with np.errstate(over="ignore"):
        exact = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
    error = np.abs(FUNCTIONS[name](x) - exact)
    inside = x >= LOWEST["float32"]
    assert (error[inside] / ulp(exact[inside], "float32")).max() <= WORST[name][0]
    if name == "tanh":
        assert (error[~inside] == 0).all()
    else:
        assert error[~inside].max() < 1.7e-38


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_worst_float32(name):
    worst, at = WORST[name]
    x = np.array([at], "float32")
    with mpmath.workdps(60):
        exact = EXACT[name](mpmath.mpf(float(x[0])))
        error = abs(mpmath.mpf(float(FUNCTIONS[name](x)[0])) - exact)
        assert float(error / ulp(float(exact), "float32")) == pytest.approx(worst, abs=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=1000), rng.uniform(-40, 40, 1000), 10.0 ** rng.uniform(-300, 2, 1000)]
    )
    got = FUNCTIONS[name](x)
    with mpmath.workdps(60):
        for x_i, y in zip(x.tolist(), got.tolist(), strict=True):
            exact = EXACT[name](mpmath.mpf(x_i))
            assert abs(mpmath.mpf(y) - exact) <= 2.5 * ulp(float(exact), "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_at_the_ends(dtype):
    """Odd to the bit, exact at the ends, and never beyond them."""
    x = np.array([0.0, -0.0, np.inf, -np.inf, 1e-320, 1e-40, 5, 50, 500, 5000], dtype)
    with np.errstate(over="ignore"):
        extremes = np.array([*x, np.finfo(dtype).max, np.finfo(dtype).tiny], dtype)
    y = tanh(extremes)
    assert (tanh(-extremes) == -y).all()
    assert (np.abs(y) <= 1).all()
    assert y[:4].tolist() == [0, 0, 1, -1]
    z = sigmoid(extremes[np.isfinite(extremes)])  # elsewhere the other gates are NaN
    assert ((z >= 0) & (z <= 1)).all()
    most = np.finfo(dtype).max
    half, one, least = sigmoid(np.array([0, most, -most], dtype)).tolist()
    assert (half, one) == (0.5, 1)
    assert least == pytest.approx(np.exp(LOWEST[dtype]))  # in place of 0
    assert np.isnan(tanh(np.array([np.nan], dtype))).all()
    assert np.isnan(sigmoid(np.array([np.nan], dtype))).all()


# Layers


def drawn(cell, D, H, steps, batch, *, weights=1.0, x=1.0, seed=0, **options):
    """A case whose weights and x are multiplied so."""
    case = make(cell, D, H, steps, batch, "float32", seed=seed, extents=False, **options)
    for w in case.weights.values():
        w *= np.float32(weights)
    case.x[...] *= np.float32(x)
    for a in parts(case.state):
        a[...] = 0
    return case


SIZES = [(3, 16, 30, 64), (32, 64, 50, 32), (128, 128, 20, 16), (300, 256, 20, 8), (64, 512, 10, 8)]
CASES = {
    f"{cell}, D={D}, H={H}": lambda cell=cell, size=(D, H, L, N): drawn(cell, *size)
    for cell in CELLS
    for D, H, L, N in SIZES
} | {
    "saturated gates": lambda: drawn("gru", 16, 64, 30, 32, x=1e3),
    "saturated units": lambda: drawn("rnn_tanh", 16, 64, 30, 32, x=1e3),
    "subnormal x": lambda: drawn("gru", 16, 64, 30, 32, x=1e-39),
    "subnormal weights": lambda: drawn("gru", 16, 64, 30, 32, weights=1e-39),
    "subnormal results": lambda: drawn("rnn_relu", 16, 64, 9, 32, x=1e-39, bias=False),
    "both directions, 2 layers": lambda: drawn(
        "gru", 16, 64, 30, 32, num_layers=2, bidirectional=True
    ),
    "H=2048, GRU": lambda: drawn("gru", 16, 2048, 4, 2),
    "H=2048, RNN": lambda: drawn("rnn_tanh", 16, 2048, 8, 2),
    "L=10000": lambda: drawn("gru", 3, 4, 10_000, 1),
    "L=10000, LSTM": lambda: drawn("lstm", 3, 4, 10_000, 1),
    "saturated gates, LSTM": lambda: drawn("lstm", 16, 64, 30, 32, x=1e3),
    "subnormal x, LSTM": lambda: drawn("lstm", 16, 64, 30, 32, x=1e-39),
    "both directions, 2 layers, LSTM": lambda: drawn(
        "lstm", 16, 64, 30, 32, num_layers=2, bidirectional=True
    ),
    "H=2048, LSTM": lambda: drawn("lstm", 16, 2048, 4, 2),
    "LSTM with a projection": lambda: drawn("lstm", 32, 64, 50, 32, proj_size=24),
}
LONG = {
    "L=100000, GRU": lambda: drawn("gru", 3, 4, 100_000, 1),
    "L=100000, LSTM": lambda: drawn("lstm", 3, 4, 100_000, 1),
    "L=100000, RNN": lambda: drawn("rnn_tanh", 3, 4, 100_000, 1),
}  # for `make accuracy`: torch takes its time


def errors(case):
    """The largest error of the output, beside its largest value: Elman's, and those of torch's.

    An LSTM takes oneDNN in torch, or where it may not torch's own operators, with other bits. A GRU
    that resets before the product is no layer of torch's: there it is the loop on its operators.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is what Elman is compared with")

    def torchs(dtype, onednn=True):
        if case.spec.cell.gated:
            given = [torch.tensor(a, dtype=dtype) for a in (case.x, case.h_0)]
            weights = [torch.tensor(w, dtype=dtype) for w in case.weights.values()]
            return scan.layer(case.spec.cell, *given, [Weights(*weights)], xp=torch)[0].numpy()
        layer = layer_of(case, torch.nn, dtype)
        layer.load_state_dict({k: torch.tensor(w, dtype=dtype) for k, w in case.weights.items()})
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other flags, which it sets as they are
            with torch.backends.mkldnn.flags(enabled=onednn):
                return layer(torch.tensor(case.x, dtype=dtype))[0].numpy()

    exact = torchs(torch.float64)
    ways = (True, False) if case.spec.cell.name == "lstm" else (True,)
    if case.spec.proj_size:  # which oneDNN has not
        ways = (False,)
    outputs = [numpy_layer(case)(case.x)[0], *(torchs(torch.float32, way) for way in ways)]
    return [np.abs(a.astype("float64") - exact).max() / np.abs(exact).max() for a in outputs]


def ratios(cases):
    """Elman's error over torch's, by the name of the case."""
    found = {}
    for name, case in cases.items():
        ours, *torchs = errors(case())
        for way, error in zip(("", " without oneDNN"), torchs, strict=False):
            found[name + way] = ours / error
    return found


MEDIAN, MOST = 1.0, 2.0


def test_layers_beside_torchs_own():
    found = ratios(CASES)
    assert np.median(list(found.values())) <= MEDIAN, found
    assert max(found.values()) <= MOST, found


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "gru_reset_before", "lstm"])
def test_float64_beside_60_digits(cell):
    case = make(cell, 3, 4, 5, 2, "float64", extents=False)
    output, final = numpy_layer(case)(case.x, case.state)
    with mpmath.workdps(60):
        for n in range(case.x.shape[1]):
            state = [mpmath.matrix(a[0, n].tolist()) for a in parts(case.state)]
            for t in range(len(case.x)):
                state = exact_step(cell, case.weights, case.x[t, n], *state)
                assert_exact(output[t, n], state[0])
            for got, want in zip(parts(final), state, strict=True):
                assert_exact(got[0, n], want)


def assert_exact(got, want):
    for a, b in zip(got.tolist(), want, strict=True):
        assert abs(a - b) <= 1e-15


def exact_step(cell, weights, x, h, c=None):
    """The states after a step, of mpmath's numbers."""

    def product(name, v):
        w, b = (mpmath.matrix(weights[f"{kind}_{name}_l0"].tolist()) for kind in ("weight", "bias"))
        return w * v + b

    a, u = product("ih", mpmath.matrix(x.tolist())), product("hh", h)
    if cell == "rnn_tanh":
        return [(a + u).apply(mpmath.tanh)]
    units, sigmoid = range(len(h)), EXACT["sigmoid"]

    def gate(k, function):
        return [function(a[k * len(h) + i] + u[k * len(h) + i]) for i in units]

    if cell == "lstm":
        i, f, o = (gate(k, sigmoid) for k in (0, 1, 3))
        g = gate(2, mpmath.tanh)
        c = [f[j] * c[j] + i[j] * g[j] for j in units]
        return [mpmath.matrix([o[j] * mpmath.tanh(c[j]) for j in units]), mpmath.matrix(c)]
    r, z = gate(0, sigmoid), gate(1, sigmoid)
    if cell == "gru_reset_before":
        u, r = product("hh", mpmath.matrix([r[i] * h[i] for i in units])), [1] * len(h)
    n = [mpmath.tanh(a[2 * len(h) + i] + r[i] * u[2 * len(h) + i]) for i in units]
    return [mpmath.matrix([(1 - z[i]) * n[i] + z[i] * h[i] for i in units])]
