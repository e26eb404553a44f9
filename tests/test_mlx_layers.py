"""The MLX package against MLX's own layers: values, gradients, MLX's transformations."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from reference import assert_close, parts

mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
nn = pytest.importorskip("mlx.nn")
optim = pytest.importorskip("mlx.optimizers")
from mlx.utils import tree_flatten  # noqa: E402

import elman.mlx  # noqa: E402
from elman.mlx import paths, require  # noqa: E402
from elman.mlx.operators import transformed  # noqa: E402

STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}
STOCK = {kind: getattr(nn, kind) for kind in STATES}
every_kind = pytest.mark.parametrize("kind", STATES)
L, N, D, H = 6, 3, 4, 5


def twins(kind, *arguments, dtype=mx.float32, **options):
    """Elman's layer and MLX's, of one seed."""
    made = []
    for module in (elman.mlx, nn):
        mx.random.seed(0)
        layer = getattr(module, kind)(D, H, *arguments, **options)
        layer.set_dtype(dtype)
        made.append(layer)
    return made


def normal(*shape, dtype=mx.float32, seed=1):
    return mx.array(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def h_of(results):
    """H at every step, of which an LSTM gives c beside."""
    return parts(results)[0]


def some(kind, *shape, seed, dtype=mx.float32):
    """An array for h, and for c where there is one."""
    return [normal(*shape, dtype=dtype, seed=seed + 10 * i) for i in range(STATES[kind])]


def run(layer, x, states, ds):
    """The results and every gradient of sum(result * d), by name; of fewer ds of those alone."""
    found = []

    def loss(parameters, x, *states):
        layer.update(parameters)
        if type(layer) in (nn.RNN, nn.LSTM):  # as mlx.nn.GRU does by itself
            lead = (*x.shape[:-2], H)
            states = [mx.broadcast_to(a, lead) if a.ndim < x.ndim - 1 else a for a in states]
        found[:] = parts(layer(x, *states))
        return sum((a * d).sum() for a, d in zip(found, ds, strict=False))

    with mx.stream(mx.cpu):
        wanted = tuple(range(2 + len(states)))
        parameters, *others = mx.grad(loss, wanted)(layer.parameters(), x, *states)
        mx.eval(found, parameters, others)
    results = dict(zip(("output", "cells"), found, strict=False))
    gradients = dict(zip(("d_x", "d_hidden", "d_cell"), others, strict=False))
    return {**results, **gradients, **dict(tree_flatten(parameters))}


def assert_agree(ours, stock, dtype="float32"):
    assert ours.keys() == stock.keys()
    for name, want in stock.items():
        assert ours[name].dtype == want.dtype
        assert_close(ours[name], want, dtype, name)


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("lead", "state"),
    [
        ((), None),
        ((), ()),
        ((N,), None),
        ((N,), (N,)),
        ((N,), ()),  # one state for every row
        ((), (N,)),  # one input for every state
        ((2, N), (2, N)),
        ((2, 1), (2, N)),
        ((0,), (0,)),
    ],
)
def test_same_as_mlx(kind, dtype, bias, training, lead, state):
    dtype_ = getattr(mx, dtype)
    ours, stock = (layer.train(training) for layer in twins(kind, bias, dtype=dtype_))
    x = normal(*lead, L, D, dtype=dtype_)
    states = [] if state is None else some(kind, *state, H, dtype=dtype_, seed=2)
    rows = np.broadcast_shapes(lead, state or ())
    ds = some(kind, *rows, L, H, dtype=dtype_, seed=3)
    # MLX's float64 sigmoid is good to float32.
    precise = dtype == "float64" and kind == "RNN"
    for given in (ds[:1], ds):  # of h alone, or of c too
        with require("kernel"):
            got = run(ours, x, states, given)
        assert_agree(got, run(stock, x, states, given), "float64" if precise else "float32")


@pytest.mark.parametrize("given", [0, 1])
def test_one_of_two_states(given):
    """The other one is zeros."""
    ours, stock = twins("LSTM")
    x, d = normal(N, L, D), some("LSTM", N, L, H, seed=3)
    state = normal(N, H, seed=2)
    both = [mx.zeros((N, H))] * 2
    both[given] = state
    for layer in (ours, stock):
        got = layer(x, **{("hidden", "cell")[given]: state})
        assert_close(got, layer(x, *both))
    assert_agree(run(ours, x, both, d), run(stock, x, both, d))


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_the_last_c_is_the_engines(training):
    """As models take it that go on from the state: c at the last step is c_n."""
    layer = twins("LSTM")[0].train(training)
    x, d = normal(N, L, D), normal(N, H, seed=3)
    of_last = mx.grad(lambda x: (layer(x)[1][:, -1] * d).sum())(x)
    of_final = mx.grad(lambda x: (layer(x, return_state=True)[2][1] * d).sum())(x)
    assert np.array_equal(of_last, of_final)


def test_gradient_of_both_last_states():
    """H's and c's, and what arrives at c_n besides."""
    layer = twins("LSTM")[0]
    x, d = normal(N, L, D), [normal(N, H, seed=seed) for seed in range(3)]

    def loss(x):
        output, cells, (_, c_n) = layer(x, return_state=True)
        last = output[:, -1], cells[:, -1], c_n
        return sum((a * b).sum() for a, b in zip(last, d, strict=True))

    def same(x):
        _, _, (h_n, c_n) = layer(x, return_state=True)
        return (h_n * d[0] + c_n * (d[1] + d[2])).sum()

    assert_close(mx.grad(loss)(x), mx.grad(same)(x))


@pytest.mark.parametrize(
    ("nonlinearity", "path"),
    [
        (None, "kernel"),
        (nn.tanh, "kernel"),
        (mx.tanh, "kernel"),
        (nn.relu, "kernel"),
        (nn.gelu, "mlx"),
        (nn.ReLU(), "kernel"),  # an empty dictionary, for which MLX takes its default, tanh
        (lambda a: mx.sin(a) + a, "mlx"),
    ],
)
def test_nonlinearity(nonlinearity, path):
    ours, stock = twins("RNN", nonlinearity=nonlinearity)
    x, states, ds = normal(N, L, D), [normal(N, H, seed=2)], [normal(N, L, H, seed=3)]
    with require(path):
        got = run(ours, x, states, ds)
    assert_agree(got, run(stock, x, states, ds))


def test_relu_of_zero_has_no_slope_and_of_nan_is_nan():
    ours, stock = twins("RNN", True, nn.relu)
    for layer in (ours, stock):
        layer.update({k: mx.zeros_like(w) for k, w in layer.parameters().items()})
    x, d = mx.zeros((L, D)), mx.ones((L, H))
    assert_agree(run(ours, x, [], [d]), run(stock, x, [], [d]))
    assert np.isnan(ours(mx.full((L, D), mx.nan))).all()


def test_nonlinearity_of_its_own_in_layers():
    """What MLX's layer has not, with what the engine has not: the loop, against MLX by hand."""
    for kind in (elman.mlx.GRU, elman.mlx.LSTM):
        with pytest.raises(TypeError, match="nonlinearity"):
            kind(D, H, nonlinearity=mx.sin)
    rnn = elman.mlx.RNN(D, H, True, mx.sin, num_layers=2)
    below, above = rnn.layers
    with require("scan"):
        output, h_n = rnn(normal(N, L, D), return_state=True)
    first = nn.RNN.__call__(below, normal(N, L, D))
    want = nn.RNN.__call__(above, first)
    assert_close(output, want)
    assert_close(h_n, mx.stack([first[:, -1], want[:, -1]]))


@every_kind
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_other_dtypes_are_mlx_own(kind, dtype):
    ours, stock = twins(kind, dtype=dtype)
    x = normal(N, L, D, dtype=dtype)
    with require("mlx"):
        *every, final = ours(x, return_state=True)
    for a, last, want in zip(every, parts(final), parts(stock(x)), strict=True):
        assert a.dtype == dtype
        assert mx.array_equal(a, want)
        assert mx.array_equal(last, a[:, -1])
    message = "'kernel' is required, but this call takes 'mlx'"
    with require("kernel"), pytest.raises(RuntimeError, match=message):
        ours(x)


@every_kind
def test_half_precision_with_lengths_is_the_loop(kind):
    ours, stock = twins(kind, dtype=mx.float16)
    x = normal(N, L, D, dtype=mx.float16)
    with require("scan"):
        every = parts(ours(x, lengths=[L, 2, 0]))
    for a, whole in zip(every, parts(stock(x)), strict=True):
        want = np.array(whole.astype(mx.float32))
        want[1, 2:] = want[2] = 0
        assert a.dtype == mx.float16
        assert np.abs(np.array(a.astype(mx.float32)) - want).max() < 5e-3


@pytest.mark.parametrize("of_x", [mx.float16, mx.float32])
def test_mixed_dtypes_are_promoted_as_mlx_does(of_x):
    ours, stock = twins("GRU", dtype=mx.float16 if of_x == mx.float32 else mx.float32)
    x = normal(N, L, D, dtype=of_x)
    with require("mlx"):
        output = ours(x)
    assert output.dtype == stock(x).dtype == mx.float32
    assert mx.array_equal(output, stock(x))


def test_arrays_are_read_where_they_lie():
    """Slices, transposes and broadcasts of other arrays."""
    ours, stock = twins("GRU")
    x = normal(L, N, 2 * D)
    for view in (
        x.swapaxes(0, 1)[..., :D],
        x.swapaxes(0, 1)[..., ::2],
        normal(N, D, L).swapaxes(1, 2),
        mx.broadcast_to(normal(D), (N, L, D)),
    ):
        assert_close(ours(view), stock(view))


# --- Transformations -----------------------------------------------------------------------------


def square(layer):
    return lambda x: sum((a**2).sum() for a in parts(layer(x)))


def slope(layer):
    return mx.grad(square(layer))


TRANSFORMED = {
    "vmap": ("scan", lambda f: mx.vmap(f)),
    "vmap of grad": ("scan", lambda f: mx.vmap(slope(f))),
    "grad of vmap": ("scan", lambda f: slope(mx.vmap(f))),
    "vmap over an axis behind": ("scan", lambda f: mx.vmap(f, in_axes=1, out_axes=1)),
    "compile": ("scan", lambda f: mx.compile(lambda x: f(x))),
    "compile of grad": ("scan", lambda f: mx.compile(slope(f))),
    "grad of compile": (None, lambda f: slope(mx.compile(lambda x: f(x)))),
    "checkpoint": ("kernel", lambda f: mx.grad(mx.checkpoint(square(f)))),
    "jvp": ("kernel", lambda f: lambda x: mx.jvp(f, [x], [mx.cos(x)])[1][0]),
    "grad of grad": ("kernel", lambda f: mx.grad(lambda x: (slope(f)(x) ** 2).sum())),
    "grad of jvp": (
        "kernel",
        lambda f: mx.grad(lambda x: (mx.jvp(f, [x], [mx.ones_like(x)])[1][0] ** 2).sum()),
    ),
    "vmap over cotangents": (
        "kernel",
        lambda f: lambda x: mx.vmap(lambda d: mx.vjp(f, [x], [d])[1][0])(normal(7, N, L, H)),
    ),
}


def both(layer):
    """An LSTM's h and c as one array."""
    return lambda x: mx.concatenate(layer(x), -1)[..., : 2 * H : 2]


#: What is transformed: the results as they are; of an LSTM h alone, and both.
RESULTS = {
    "RNN": [lambda layer: layer],
    "GRU": [lambda layer: layer],
    "LSTM": [lambda layer: lambda x: h_of(layer(x)), both],
}


@every_kind
@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("training", [True, False])
def test_transformation(kind, name, training):
    path, transform = TRANSFORMED[name]
    ours, stock = (layer.train(training) for layer in twins(kind))
    x = normal(N, 3 if "compile" in name else L, D)  # a C++ compiler runs for every few steps
    for of in RESULTS[kind]:
        paths.clear()
        got = transform(of(ours))(x)
        mx.eval(got)
        assert path is None or set(paths) == {path}
        assert_close(got, transform(of(stock))(x), name=name)


@every_kind
def test_second_derivatives_of_every_parameter(kind):
    ours, stock = twins(kind)
    x, states, ds = normal(N, L, D), some(kind, N, H, seed=2), some(kind, N, L, H, seed=3)
    wanted = tuple(range(2 + len(states)))

    def penalty(layer, ds):
        def loss(parameters, x, *states):
            layer.update(parameters)
            return sum((a * d).sum() for a, d in zip(parts(layer(x, *states)), ds, strict=False))

        def size(parameters, x, *states):
            gradients = tree_flatten(mx.grad(loss, wanted)(parameters, x, *states))
            return sum((g**2).sum() for _, g in gradients)

        return dict(tree_flatten(mx.grad(size, wanted)(layer.parameters(), x, *states)))

    for given in (ds[:1], ds):
        assert_agree(penalty(ours, given), penalty(stock, given))


@every_kind
def test_export(kind, tmp_path):
    ours, stock = twins(kind)
    x = normal(N, L, D)
    mx.export_function(str(tmp_path / "layer.mlxfn"), ours, x)
    results = mx.import_function(str(tmp_path / "layer.mlxfn"))(x)
    assert_close(tuple(results), parts(stock(x)))


def test_required_kernel_refuses_what_has_no_values():
    ours, _ = twins("GRU")
    with require("kernel"), pytest.raises(RuntimeError, match="takes 'scan'"):
        mx.compile(lambda x: ours(x))(normal(N, L, D))


def test_input_changed_in_place_after_the_call():
    """Backward has the values that the call had."""

    def loss(layer):
        def inner(x):
            output = layer(x)
            x[0] = 0
            layer.Wh += 1
            mx.eval(x, layer.Wh, [mx.random.normal((3 * H, H)) for _ in range(20)])
            return (output**2).sum()

        return inner

    ours, stock = twins("GRU")
    assert_close(mx.grad(loss(ours))(normal(N, L, D)), mx.grad(loss(stock))(normal(N, L, D)))


# --- Outside transformations ---------------------------------------------------------------------


def within(f):
    """What f gives while MLX traces, though of an array that it has no part in."""
    found = []

    def traced(a):
        found[:] = f()
        return a

    mx.grad(traced)(mx.array(1.0))
    mx.eval(found)
    return found


def flat(results):
    return [a for part in results for a in (part if isinstance(part, tuple) else (part,))]


@every_kind
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True, "dropout": 0.5}])
@pytest.mark.parametrize("lead", [(), (N,), (2, N), (0,)])
@pytest.mark.parametrize("given", ["nothing", "states", "extent"])
def test_outside_a_transformation_the_same_bits(kind, dtype, options, lead, given, monkeypatch):
    layer = getattr(elman.mlx, kind)(D, H, **options)
    layer.set_dtype(dtype)
    x, states, extent = normal(*lead, L, D, dtype=dtype), [], {}
    if given == "states":
        shape = (*lead, H) if not options else (6, *lead, H)
        states = some(kind, *shape, seed=2, dtype=dtype)
    if given == "extent":
        rng = np.random.default_rng(3)
        extent = {"lengths": rng.integers(0, L + 1, lead), "reset": rng.random((*lead, L)) < 0.3}

    def call():
        mx.random.seed(4)  # the dropout's
        with require("kernel"):
            return flat(layer(x, *states, **extent, return_state=True))

    want = within(call)
    monkeypatch.setattr(elman.mlx.layers, "Function", None)  # which takes MLX's operations
    got = call()
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype == dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))
        assert np.array_equal(np.signbit(a), np.signbit(b))


@every_kind
def test_one_state_of_another_type(kind):
    """MLX's concatenation widens one of two; of one alone MLX's layer makes what it does."""
    layer = twins(kind)[0]
    x, (first, *others) = normal(N, L, D), some(kind, N, H, seed=2, dtype=mx.float16)
    others = [a.astype(mx.float32) for a in others]
    with require("kernel" if others else "mlx"):
        got = layer(x, first, *others)
    assert_close(got, layer(x, first.astype(mx.float32), *others))


def test_transformations_are_told():
    found = []

    def look(a):
        found.append(transformed())
        return a

    x = mx.ones(3)
    look(x)
    mx.vjp(look, [x], [x])
    mx.jvp(look, [x], [x])
    mx.vmap(look)(x)
    mx.compile(look)(x)
    with pytest.raises(ZeroDivisionError):
        mx.grad(lambda a: a / (1 // 0))(x)
    look(x)
    assert found == [False, True, True, True, True, False]


def test_in_another_thread():
    layer, stock = twins("GRU")
    x, d = normal(N, L, D), normal(N, L, H, seed=3)
    want = run(layer, x, [], [d])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(transformed).result() is None
        got = pool.submit(run, layer, x, [], [d]).result()
        output = pool.submit(lambda: np.array(layer(x))).result()
    assert np.array_equal(output, want["output"])
    assert_agree(got, want)
    assert_agree(got, run(stock, x, [], [d]))


def test_where_nothing_is_compiled():
    """It cannot be told then whether MLX traces."""
    layer, _ = twins("GRU")
    x, d = normal(N, L, D), normal(N, L, H, seed=3)
    want = [layer(x), *run(layer, x, [], [d]).values()]
    mx.disable_compile()
    try:
        got = [layer(x), *run(layer, x, [], [d]).values()]
    finally:
        mx.enable_compile()
    for a, b in zip(got, want, strict=True):
        assert mx.array_equal(a, b)


@every_kind
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}])
def test_after_an_inner_gradient(kind, options):
    """It ends MLX's tracing of the outer arrays that it meets, which still have gradients."""
    layer = getattr(elman.mlx, kind)(D, H, **options)

    def by_stock(x):
        for part in layer.layers if options else [layer]:
            x = h_of(STOCK[kind].__call__(part, x))
        return x

    x, w = normal(N, L, D), normal(D, D, seed=4)

    def loss(f):
        def outer(w, state):
            slope = mx.grad(lambda x: (f(x @ w) ** 2).sum())(x)
            return (slope**2).sum() + (f(x @ w) * (1 + state)).sum()

        return outer

    state = normal(N, L, H, seed=5)
    got = mx.grad(loss(lambda x: h_of(layer(x))), (0, 1))(w, state)
    want = mx.grad(loss(by_stock), (0, 1))(w, state)
    assert_close(tuple(got), tuple(want))


# --- Training ------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.below, self.layer, self.head = nn.Linear(D, D), layer, nn.Linear(H, 2)

    def __call__(self, x):
        return self.head(sum(parts(self.layer(self.below(x))))[:, -1])


@every_kind
@pytest.mark.parametrize("compiled", [False, True])
def test_training_goes_as_with_mlx(kind, compiled):
    x, labels = normal(8, 3 if compiled else L, D), mx.array([0, 1] * 4)
    histories, weights = [], []
    for layer in twins(kind):
        mx.random.seed(1)
        model, optimizer = Model(layer), optim.Adam(learning_rate=0.05)
        step = nn.value_and_grad(
            model, lambda x, model=model: nn.losses.cross_entropy(model(x), labels).mean()
        )

        def train(x, step=step, model=model, optimizer=optimizer):
            loss, gradients = step(x)
            optimizer.update(model, gradients)
            return loss

        state = [model.state, optimizer.state]
        if compiled:
            train = mx.compile(train, inputs=state, outputs=state)
        history = []
        for _ in range(8):
            history.append(train(x))
            mx.eval(state, history)
        histories.append(mx.stack(history))
        weights.append(dict(tree_flatten(model.parameters())))
    assert histories[0][-1] < 0.8 * histories[0][0]
    assert np.allclose(*histories, rtol=1e-4)
    # Adam divides by the size of the gradient, so that a small one's rounding counts: 8 steps of
    # 0.05 part by 1.4e-4.
    for name, want in weights[1].items():
        assert np.allclose(weights[0][name], want, atol=3e-4), name


@every_kind
def test_keeping_for_backward_changes_nothing(kind):
    layer, _ = twins(kind)
    x, states, ds = normal(N, L, D), some(kind, N, H, seed=2), [normal(N, L, H, seed=3)]
    kept, again = (run(layer.train(mode), x, states, ds) for mode in (True, False))
    for name, want in kept.items():
        assert np.array_equal(again[name], want), name


def test_frozen_parameters_get_no_gradient():
    layer, _ = twins("GRU")
    layer.freeze(keys=["Wh", "b"])
    _, gradients = nn.value_and_grad(layer, lambda x: layer(x).sum())(normal(N, L, D))
    assert sorted(gradients) == ["Wx", "bhn"]


@every_kind
def test_dropout_lies_between_layers(kind):
    layer = getattr(elman.mlx, kind)(D, H, num_layers=3, dropout=0.4)
    x = normal(N, L, D)
    mx.random.seed(5)
    *every, final = layer(x, return_state=True)
    mx.random.seed(5)
    want, finals = x, []
    for k, part in enumerate(layer.layers):
        if k:
            want = nn.Dropout(0.4)(want)
        want, *cells = parts(part(want))
        finals.append([a[:, -1] for a in (want, *cells)])
    assert_close(tuple(every), (want, *cells))
    for a, last in zip(parts(final), zip(*finals, strict=True), strict=True):
        assert np.array_equal(a, mx.stack(last))
    layer.eval()
    for part in layer.layers:
        x = h_of(part(x))
    mx.random.seed(6)
    assert np.array_equal(h_of(layer(normal(N, L, D))), x)
