"""Layers, directions, lengths and reset of the MLX package against the NumPy one, to the bit."""

import numpy as np
import pytest
from reference import (
    assert_all_close,
    assert_all_same_bits,
    assert_close,
    assert_same_bits,
    named,
    parts,
    whole,
)

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
#: MLX's names of a direction's weights.
NAMES = {
    "RNN": ("Wxh", "Whh", "bias"),
    "GRU": ("Wx", "Wh", "b", "bhn"),
    "LSTM": ("Wx", "Wh", "bias"),
}
every_kind = pytest.mark.parametrize("kind", NAMES)
every_shape = pytest.mark.parametrize(
    ("num_layers", "bidirectional"), [(1, False), (1, True), (3, False), (2, True)]
)


def owners(layer):
    """PyTorch's suffix of each part that has weights, and its name in MLX's tree."""
    K = layer.num_layers
    if K == 1 and not layer.bidirectional:
        return [("l0", "")]
    sides = ["", "_reverse"] if layer.bidirectional else [""]
    return [(f"l{k}{side}", f"layers{side}.{k}.") for k in range(K) for side in sides]


def to_numpy(kind, layer, weights):
    """MLX's weights, or their gradients, under the names of the NumPy package."""
    found = {}
    for suffix, prefix in owners(layer):
        w = {k[len(prefix) :]: np.array(a) for k, a in weights.items() if k.startswith(prefix)}
        x, h, *bias = NAMES[kind]
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
    own = {"nonlinearity": getattr(nn, nonlinearity)} if kind == "RNN" else {}
    layer = getattr(elman.mlx, kind)(D, H, **own, **options)
    layer.set_dtype(getattr(mx, dtype))
    own = {"nonlinearity": nonlinearity} if kind == "RNN" else {}
    numpy = getattr(elman, kind)(D, H, batch_first=True, dtype=dtype, **own, **options)
    numpy.load_state_dict(to_numpy(kind, layer, dict(tree_flatten(layer.parameters()))))
    return layer, numpy


def arrays(layer, dtype, seed=0, lengths=None):
    """X (N, L, D), NaN where it is not to be read, h_0, or (h_0, c_0), and d_output and d_h_n."""
    rng = np.random.default_rng(seed)
    directions = 2 if layer.bidirectional else 1

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def state():
        shape = (layer.num_layers * directions, N, H)
        return (normal(*shape), normal(*shape)) if isinstance(layer, nn.LSTM) else normal(*shape)

    x, first, d, d_final = normal(N, L, D), state(), normal(N, L, directions * H), state()
    for n, length in enumerate([] if lengths is None else lengths):
        x[n, length:] = np.nan
    return x, first, d, d_final


def mlx(a):
    return mx.array(a, getattr(mx, str(a.dtype)))


def call(layer, x, states, extent):
    """Output and the final states, which are (K, N, H) for one of them as well."""
    single = layer.num_layers == 1 and not layer.bidirectional
    given = [a[0] if single else a for a in states]
    output, *_, final = layer(x, *given, **extent, return_state=True)
    return output, *(a[None] if single else a for a in parts(final))


def run(layer, x, first, d, d_final, extent, transform=lambda f: f):
    """The results and every gradient, by name; those of the weights by MLX's."""
    names = [name for name, _ in tree_flatten(layer.parameters())]
    states = parts(first)
    given = [mlx(a) for a in (x, *states, d, *parts(d_final))]
    count = len(states) + 1

    def of_weights(x, *rest):
        states, weights = rest[: count - 1], rest[count - 1 :]
        layer.update(tree_unflatten(list(zip(names, weights, strict=True))))
        return list(call(layer, x, states, extent))

    def both(*arrays):
        leaves = arrays[:count] + arrays[2 * count :]
        results, gradients = mx.vjp(of_weights, list(leaves), list(arrays[count : 2 * count]))
        return [*results, *gradients]

    before = layer.parameters()
    with mx.stream(mx.cpu):
        results = transform(both)(*given, *(w for _, w in tree_flatten(before)))
        mx.eval(results)
    layer.update(before)
    output, *rest = map(np.array, results)
    finals, (d_x, *rest) = rest[: count - 1], rest[count - 1 :]
    d_first, gradients = rest[: count - 1], rest[count - 1 :]
    found = {"output": output, **named(whole(finals), "n"), "d_x": d_x}
    found |= {f"d_{name}": a for name, a in named(whole(d_first), "0").items()}
    return found, dict(zip(names, gradients, strict=True))


def expected(numpy, x, first, d, d_final, extent):
    """The same of the NumPy package, by its own names."""
    output, final, vjp = numpy.vjp(x, first, **{k: np.array(v) for k, v in extent.items()})
    gradients = vjp(d, d_final)
    leaves = {f"d_{k}": gradients.pop(k) for k in ("x", *named(first, "0"))}
    return {"output": output, **named(final, "n"), **leaves}, gradients


def same_weights(kind, layer, got, want):
    """Gradients by the NumPy package's names, of recurrent biases what MLX has: bhn."""
    got, want = to_numpy(kind, layer, got), dict(want)
    for name in want:
        if name.startswith("bias_hh"):
            want[name] = want[name].copy()
            want[name][: 2 * H if kind == "GRU" else None] = 0
    return {name: got[name] for name in want}, want


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
        got, weights = run(layer, *given, extent)
    want, gradients = expected(numpy, *given, extent)
    assert_all_same_bits(got, want)
    assert_all_same_bits(*same_weights(kind, layer, weights, gradients))


@every_shape
@every_extent
def test_relu(num_layers, bidirectional, extent):
    layer, numpy = pair(
        "RNN", nonlinearity="relu", num_layers=num_layers, bidirectional=bidirectional
    )
    given = arrays(layer, "float32", lengths=extent.get("lengths"))
    assert_all_same_bits(run(layer, *given, extent)[0], expected(numpy, *given, extent)[0])


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
        got, weights = run(layer, *given, extent, transform=mapped)
    want, gradients = expected(numpy, *given, extent)
    assert_all_close(got, want, dtype)
    assert_all_close(*same_weights(kind, layer, weights, gradients), dtype)


@every_kind
@every_extent
def test_mapped(kind, extent):
    """vmap over the rows, lengths and reset with them."""
    layer, _ = pair(kind, num_layers=2, bidirectional=True)
    x = mx.array(arrays(layer, "float32", lengths=extent.get("lengths"))[0])
    names = list(extent)

    def one(x, *extent):
        return layer(x, **dict(zip(names, extent, strict=True)), return_state=True)

    two = kind == "LSTM"
    axes = (0, 0, (1, 1)) if two else (0, 1)
    with require("scan"):
        got = mx.vmap(one, out_axes=axes)(x, *map(mx.array, extent.values()))
    want = layer(x, **extent, return_state=True)
    assert_close((*got[:-1], *parts(got[-1])), (*want[:-1], *parts(want[-1])))


@every_kind
@every_extent
def test_leading_axes(kind, extent):
    """(2, 2, L, D) is (4, L, D) in another shape, and each row alone gives the same bits."""
    layer, _ = pair(kind, num_layers=2, bidirectional=True)
    x, first, _, _ = arrays(layer, "float32", lengths=extent.get("lengths"))
    x, states = mx.array(x), [mx.array(a) for a in parts(first)]

    def results(x, states, extent):
        *every, final = layer(x, *states, **extent, return_state=True)
        return every, parts(final)

    every, finals = results(x, states, extent)
    folded = {k: mx.array(v).reshape(2, 2, *mx.array(v).shape[1:]) for k, v in extent.items()}
    folded_states = [a.reshape(-1, 2, 2, H) for a in states]
    got, got_finals = results(x.reshape(2, 2, L, D), folded_states, folded)
    for a, b in zip((*got, *got_finals), (*every, *finals), strict=True):
        assert np.array_equal(a.reshape(b.shape), b)
    for n in range(N):
        row = {k: mx.array(v)[n] for k, v in extent.items()}
        got, got_finals = results(x[n], [a[:, n] for a in states], row)
        for a, b in zip(got, every, strict=True):
            assert np.array_equal(a, b[n])
        for a, b in zip(got_finals, finals, strict=True):
            assert np.array_equal(a, b[:, n])


@every_kind
def test_state_carries_on(kind):
    """Whole, or in two parts with the state between them: the same bits."""
    for num_layers in (1, 2):
        layer, _ = pair(kind, num_layers=num_layers)
        x = mx.array(arrays(layer, "float32")[0])
        *every, final = layer(x, return_state=True)
        *first, state = layer(x[:, :3], return_state=True)
        *second, last = layer(x[:, 3:], *parts(state), return_state=True)
        for a, b, c in zip(first, second, every, strict=True):
            assert np.array_equal(mx.concatenate([a, b], 1), c)
        for a, b in zip(parts(last), parts(final), strict=True):
            assert np.array_equal(a, b)


def prefixes(layer, x, extent):
    """For each t, c_n of the steps as far as t (N, H), and in reverse of those from t on."""
    lengths = mx.array(extent.get("lengths", [L] * N))
    reset = extent.get("reset")
    found = []
    for t in range(L):
        upto = {"lengths": mx.minimum(lengths, t + 1)}
        beyond = {"lengths": mx.maximum(lengths - t, 0)}
        if reset is not None:
            upto["reset"], beyond["reset"] = mx.array(reset)[:, : t + 1], mx.array(reset)[:, t:]
        there = (t < lengths)[:, None]
        _, _, (_, c_n) = layer(x[:, : t + 1], **upto, return_state=True)
        if layer.bidirectional:
            _, _, (_, beyond_n) = layer(x[:, t:], **beyond, return_state=True)
            c_n = mx.concatenate([c_n[0], beyond_n[1]], -1)
        elif layer.num_layers > 1:
            c_n = c_n[-1]
        found.append(mx.where(there, c_n, 0))
    return mx.stack(found, 1)


@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (1, True), (3, False)])
@every_extent
@pytest.mark.parametrize("training", [True, False])
def test_c_at_every_step(num_layers, bidirectional, extent, training):
    """It is c_n of the steps so far, to the bit; and so are its gradients, but for rounding."""
    layer, _ = pair("LSTM", num_layers=num_layers, bidirectional=bidirectional)
    layer.train(training)
    x = mx.array(arrays(layer, "float32", lengths=extent.get("lengths"))[0])
    with require("kernel"):
        _, cells = layer(x, **extent)
    assert np.array_equal(cells, prefixes(layer, x, extent))
    d = mlx(np.random.default_rng(1).standard_normal(cells.shape).astype("float32"))
    parameters = layer.parameters()

    def gradients(cells, d):
        def loss(parameters, x):
            layer.update(parameters)
            return (cells(x) * d).sum()

        return dict(tree_flatten(mx.grad(loss, (0, 1))(parameters, x)))

    at_last = mx.concatenate([0 * d[:, :-1], d[:, -1:]], 1)
    for each in (d, at_last):
        got = gradients(lambda x: layer(x, **extent)[1], each)
        assert_all_close(got, gradients(lambda x: prefixes(layer, x, extent), each))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_one_state_for_every_row(kind):
    layer, _ = pair(kind)
    x, first, _, _ = arrays(layer, "float32")
    x, one = mx.array(x), [mx.array(a[0, 0]) for a in parts(first)]
    each = [mx.stack([a] * N) for a in one]
    assert_same_bits(layer(x, *one), layer(x, *each))


@every_kind
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_no_rows(kind, options):
    layer, _ = pair(kind, **options)
    *every, final = layer(mx.zeros((0, L, D)), return_state=True)
    K = 4 if options else 1
    assert {a.shape for a in every} == {(0, L, 2 * H if options else H)}
    assert {a.shape for a in parts(final)} == {(K, 0, H) if options else (0, H)}
    gradient = mx.grad(lambda x: parts(layer(x))[0].sum())(mx.zeros((0, L, D)))
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


def test_lengths_that_lie_outside_where_nobody_sees_them():
    """Within mx.compile they count as 0 or L; outside of it they are refused."""
    gru = elman.mlx.GRU(D, H, bidirectional=True)
    x = mx.random.normal((N, L, D))
    compiled = mx.compile(lambda x, n: gru(x, lengths=n, return_state=True))
    given, meant = mx.array([L + 3, -2, 2, L]), mx.array([L, 0, 2, L])
    found = [dict(enumerate(map(np.array, compiled(x, n)))) for n in (given, meant)]
    assert_all_same_bits(*found)
    assert_all_close(found[0], dict(enumerate(gru(x, lengths=meant, return_state=True))))
    with pytest.raises(ValueError, match=r"GRU: lengths"):
        gru(x, lengths=given)
