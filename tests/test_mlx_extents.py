"""Layers, directions, lengths and reset of the MLX door against the NumPy door, to the bit."""

import numpy as np
import pytest
from reference import assert_close

mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
nn = pytest.importorskip("mlx.nn")
from mlx.utils import tree_flatten, tree_unflatten  # noqa: E402

import elman  # noqa: E402
import elman.mlx  # noqa: E402
from elman.mlx import require  # noqa: E402

L, N, D, H = 7, 4, 3, 5
LENGTHS = [4, L, 0, 1]
RESET = np.zeros((N, L), bool)
RESET[[0, 0, 1, 1, 3], [1, 2, 0, L - 1, 0]] = True
EXTENTS = {
    "whole": {},
    "lengths": {"lengths": LENGTHS},
    "reset": {"reset": RESET},
    "both": {"lengths": np.array(LENGTHS), "reset": mx.array(RESET)},
}
every_extent = pytest.mark.parametrize("extent", EXTENTS.values(), ids=EXTENTS)
every_kind = pytest.mark.parametrize("kind", ["RNN", "GRU"])
every_shape = pytest.mark.parametrize(
    ("num_layers", "bidirectional"), [(1, False), (1, True), (3, False), (2, True)]
)


def parts(layer):
    """PyTorch's suffix of each part that has weights, and its name in MLX's tree."""
    K = layer.num_layers
    if K == 1 and not layer.bidirectional:
        return [("l0", "")]
    sides = ["", "_reverse"] if layer.bidirectional else [""]
    return [(f"l{k}{side}", f"layers{side}.{k}.") for k in range(K) for side in sides]


def to_numpy(kind, layer, weights):
    """MLX's weights, or their gradients, under the names of the NumPy door."""
    found = {}
    for suffix, prefix in parts(layer):
        w = {k[len(prefix) :]: np.array(a) for k, a in weights.items() if k.startswith(prefix)}
        x, h, *bias = ("Wx", "Wh", "b", "bhn") if kind == "GRU" else ("Wxh", "Whh", "bias")
        found |= {f"weight_ih_{suffix}": w[x], f"weight_hh_{suffix}": w[h]}
        if bias[0] in w:
            recurrent = np.zeros_like(w[bias[0]])
            if kind == "GRU":
                recurrent[2 * H :] = w["bhn"]
            found |= {f"bias_ih_{suffix}": w[bias[0]], f"bias_hh_{suffix}": recurrent}
    return found


def pair(kind, dtype="float32", nonlinearity="tanh", **options):
    """An MLX layer and a NumPy one that holds its weights."""
    mx.random.seed(0)
    own = {} if kind == "GRU" else {"nonlinearity": getattr(nn, nonlinearity)}
    layer = getattr(elman.mlx, kind)(D, H, **own, **options)
    layer.set_dtype(getattr(mx, dtype))
    own = {} if kind == "GRU" else {"nonlinearity": nonlinearity}
    numpy = getattr(elman, kind)(D, H, batch_first=True, dtype=dtype, **own, **options)
    numpy.load_state_dict(to_numpy(kind, layer, dict(tree_flatten(layer.parameters()))))
    return layer, numpy


def arrays(layer, dtype, seed=0, lengths=None):
    """X (N, L, D), NaN where it is not to be read, h_0, and the cotangents of output and h_n."""
    rng = np.random.default_rng(seed)
    directions = 2 if layer.bidirectional else 1
    K = layer.num_layers * directions
    shapes = ((N, L, D), (K, N, H), (N, L, directions * H), (K, N, H))
    x, h_0, d, d_h = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    for n, length in enumerate([] if lengths is None else lengths):
        x[n, length:] = np.nan
    return x, h_0, d, d_h


def run(layer, x, h_0, d, d_h, extent, transform=lambda f: f):
    """Output, h_n and every gradient, h_0 being (K, N, H) for one state as well."""
    names = [name for name, _ in tree_flatten(layer.parameters())]
    single = len(h_0) == 1
    given = [mx.array(a, getattr(mx, str(a.dtype))) for a in (x, h_0, d, d_h)]

    def call(x, h_0, *weights):
        layer.update(tree_unflatten(list(zip(names, weights, strict=True))))
        hidden = h_0[0] if single else h_0
        output, h_n = layer(x, hidden, **extent, return_state=True)
        return output, h_n[None] if single else h_n

    def both(x, h_0, d, d_h, *weights):
        results, gradients = mx.vjp(call, [x, h_0, *weights], [d, d_h])
        return [*results, *gradients]

    before = layer.parameters()
    with mx.stream(mx.cpu):
        results = transform(both)(*given, *(w for _, w in tree_flatten(before)))
        mx.eval(results)
    layer.update(before)
    output, h_n, d_x, d_h_0, *gradients = map(np.array, results)
    return output, h_n, d_x, d_h_0, dict(zip(names, gradients, strict=True))


def expected(kind, layer, numpy, x, h_0, d, d_h, extent):
    """The same of the NumPy door, the weights' gradients under its own names."""
    extent = {k: np.array(v) for k, v in extent.items()}
    output, h_n, vjp = numpy.vjp(x, h_0, **extent)
    gradients = vjp(d, d_h)
    return output, h_n, gradients.pop("x"), gradients.pop("h_0"), gradients


def same_weights(kind, layer, got, want):
    """Compare gradients; MLX's has no recurrent biases but bhn."""
    got = to_numpy(kind, layer, got)
    assert got.keys() == want.keys()
    for name, a in want.items():
        if name.startswith("bias_hh"):
            a = np.concatenate([np.zeros_like(a[: 2 * H]), a[2 * H :]]) if kind == "GRU" else a * 0
        yield name, got[name], a


@every_kind
@every_shape
@every_extent
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_same_bits_as_numpy(kind, num_layers, bidirectional, extent, dtype, bias):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    layer, numpy = pair(kind, dtype, **options)
    given = arrays(layer, dtype, lengths=extent.get("lengths"))
    with require("kernel"):
        *got, weights = run(layer, *given, extent)
    *want, gradients = expected(kind, layer, numpy, *given, extent)
    for name, a, b in zip(("output", "h_n", "d_x", "d_h_0"), got, want, strict=True):
        assert a.dtype == dtype
        assert np.array_equal(a, b), name
    for name, a, b in same_weights(kind, layer, weights, gradients):
        assert np.array_equal(a, b), name


@every_shape
@every_extent
def test_relu(num_layers, bidirectional, extent):
    layer, numpy = pair(
        "RNN", nonlinearity="relu", num_layers=num_layers, bidirectional=bidirectional
    )
    given = arrays(layer, "float32", lengths=extent.get("lengths"))
    output, h_n, d_x, d_h_0, _ = run(layer, *given, extent)
    want = expected("RNN", layer, numpy, *given, extent)
    for a, b in zip((output, h_n, d_x, d_h_0), want, strict=False):
        assert np.array_equal(a, b)


def mapped(function):
    """The function under vmap, which has no values to give to the engine."""

    def call(*arrays):
        return [a[0] for a in mx.vmap(function)(*(a[None] for a in arrays))]

    return call


@every_kind
@every_shape
@every_extent
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loop(kind, num_layers, bidirectional, extent, dtype):
    """The loop, forward and backward, against the engine."""
    layer, numpy = pair(kind, dtype, num_layers=num_layers, bidirectional=bidirectional)
    given = arrays(layer, dtype, lengths=extent.get("lengths"))
    with require("scan"):
        *got, weights = run(layer, *given, extent, transform=mapped)
    *want, gradients = expected(kind, layer, numpy, *given, extent)
    for name, a, b in zip(("output", "h_n", "d_x", "d_h_0"), got, want, strict=True):
        assert_close(a, b, dtype, name)
    for name, a, b in same_weights(kind, layer, weights, gradients):
        assert_close(a, b, dtype, name)


@every_kind
@every_extent
def test_mapped(kind, extent):
    """vmap over the rows, lengths and reset with them."""
    layer, _ = pair(kind, num_layers=2, bidirectional=True)
    x = mx.array(arrays(layer, "float32", lengths=extent.get("lengths"))[0])
    names = list(extent)

    def one(x, *extent):
        return layer(x, **dict(zip(names, extent, strict=True)), return_state=True)

    with require("scan"):
        output, h_n = mx.vmap(one, out_axes=(0, 1))(x, *map(mx.array, extent.values()))
    want, want_h_n = layer(x, **extent, return_state=True)
    assert_close(output, want)
    assert_close(h_n, want_h_n)


@every_kind
@every_extent
def test_leading_axes(kind, extent):
    """(2, 2, L, D) is (4, L, D) in another shape, and each row alone gives the same bits."""
    layer, _ = pair(kind, num_layers=2, bidirectional=True)
    x, h_0, _, _ = map(mx.array, arrays(layer, "float32", lengths=extent.get("lengths")))
    output, h_n = layer(x, h_0, **extent, return_state=True)
    folded = {k: mx.array(v).reshape(2, 2, *mx.array(v).shape[1:]) for k, v in extent.items()}
    got = layer(x.reshape(2, 2, L, D), h_0.reshape(-1, 2, 2, H), **folded, return_state=True)
    assert np.array_equal(got[0], output.reshape(2, 2, L, -1))
    assert np.array_equal(got[1], h_n.reshape(-1, 2, 2, H))
    for n in range(N):
        row = {k: mx.array(v)[n] for k, v in extent.items()}
        got = layer(x[n], h_0[:, n], **row, return_state=True)
        assert np.array_equal(got[0], output[n])
        assert np.array_equal(got[1], h_n[:, n])


@every_kind
def test_state_carries_on(kind):
    """Whole, or in two parts with the state between them: the same bits."""
    for num_layers in (1, 2):
        layer, _ = pair(kind, num_layers=num_layers)
        x = mx.array(arrays(layer, "float32")[0])
        output, h_n = layer(x, return_state=True)
        first, state = layer(x[:, :3], return_state=True)
        second, last = layer(x[:, 3:], state, return_state=True)
        assert np.array_equal(mx.concatenate([first, second], 1), output)
        assert np.array_equal(last, h_n)


def test_one_state_for_every_row():
    layer, _ = pair("GRU")
    x, h_0, _, _ = map(mx.array, arrays(layer, "float32"))
    assert np.array_equal(layer(x, h_0[0, 0]), layer(x, mx.stack([h_0[0, 0]] * N)))


@every_kind
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_no_rows(kind, options):
    layer, _ = pair(kind, **options)
    output, h_n = layer(mx.zeros((0, L, D)), return_state=True)
    K = 4 if options else 1
    assert output.shape == (0, L, 2 * H if options else H)
    assert h_n.shape == ((K, 0, H) if options else (0, H))
    gradient = mx.grad(lambda x: layer(x).sum())(mx.zeros((0, L, D)))
    assert gradient.shape == (0, L, D)


@pytest.mark.parametrize("path", ["kernel", "scan"])
@pytest.mark.parametrize("wrong", [[L + 1, 1, 1, 1], [1, 1, 1, -1]])
def test_lengths_out_of_range(path, wrong):
    layer, _ = pair("GRU")
    layer.set_dtype(mx.float32 if path == "kernel" else mx.float16)
    x = mx.zeros((N, L, D), layer.Wx.dtype)
    with pytest.raises(ValueError, match=rf"GRU: lengths must lie between 0 and L = {L}, got"):
        layer(x, lengths=wrong)


@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        ([1, 2, 3], r"got integers of \(3,\)"),
        ([[1, 2, 3, 4]], r"got integers of \(1, 4\)"),
        (3, r"got integers of \(\)"),
        ([1.0, 2.0, 3.0, 4.0], r"got another type of \(4,\)"),
        ([True] * 4, r"got another type of \(4,\)"),
    ],
)
def test_wrong_lengths(lengths, got):
    layer, _ = pair("GRU")
    message = r"GRU: lengths must be integers of shape \(4,\), " + got
    with pytest.raises(ValueError, match=message):
        layer(mx.zeros((N, L, D)), lengths=lengths)


@pytest.mark.parametrize(
    ("reset", "got"),
    [
        (RESET.T, r"got booleans of \(7, 4\)"),
        (RESET[0], r"got booleans of \(7,\)"),
        (RESET.astype("int32"), r"got another type of \(4, 7\)"),
    ],
)
def test_wrong_reset(reset, got):
    layer, _ = pair("RNN")
    with pytest.raises(ValueError, match=r"RNN: reset must be booleans of shape \(4, 7\), " + got):
        layer(mx.zeros((N, L, D)), reset=reset)
