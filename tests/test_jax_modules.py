"""Flax's and Equinox's cells by the JAX package, against Flax and Equinox themselves."""

from functools import partial

import numpy as np
import pytest
from reference import assert_close, assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("flax", reason="Flax is not installed")
eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
import flax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402

import elman.jax.equinox  # noqa: E402
import elman.jax.linen  # noqa: E402
import elman.jax.nnx  # noqa: E402
from elman.jax import paths, require  # noqa: E402

pytestmark = pytest.mark.usefixtures("jax_compiles_quickly")
N, L, D, H = 4, 6, 3, 5
HAS_NNX = tuple(map(int, flax.__version__.split(".")[:2])) >= (0, 12)
of_nnx = pytest.mark.skipif(not HAS_NNX, reason="elman.jax.nnx is for Flax 0.12 on")
LENGTHS = jnp.array([L, 1, 4, 2])
OPTIONS = {
    "plain": {},
    "reverse": {"reverse": True},
    "in order": {"reverse": True, "keep_order": True},
    "time major": {"time_major": True},
}
#: Each cell, each option, with lengths and without: what costs time is to compile Flax's own.
every_case = pytest.mark.parametrize(
    ("cell", "option", "lengths"),
    [
        ("SimpleCell", "reverse", LENGTHS),
        ("GRUCell", "plain", LENGTHS),
        ("LSTMCell", "in order", LENGTHS),
        ("OptimizedLSTMCell", "time major", LENGTHS),
        ("GRUCell", "reverse", None),
    ],
)


def normal(shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, dtype)


def anew(tree):
    """Random values in all leaves, as biases begin as zeros."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([normal(a.shape, n, a.dtype) for n, a in enumerate(leaves)])


def assert_all(check, got, want):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    for a, b in zip(got, want, strict=True):
        check(a, b)


def carry_of(cell, batch=(N,)):
    h = normal((*batch, H), 1)
    return (normal((*batch, H), 2), h) if "LSTM" in cell else h


def results(run, x, lengths, time_major=False):
    """Carry and outputs, these without what lies past the rows' lengths."""
    carry, outputs = run(x.swapaxes(0, 1) if time_major else x)
    outputs = outputs.swapaxes(0, 1) if time_major else outputs
    if lengths is None:
        return carry, outputs
    return carry, jnp.where((jnp.arange(L) < lengths[:, None])[..., None], outputs, 0)


def assert_same_results(run, stock, ours, arguments):
    """Of ``run(kind, *arguments)``, and the gradients of all arguments."""

    def loss(kind, *arguments):
        found = run(kind, *arguments)
        return sum((a**2).sum() for a in jax.tree.leaves(found)), found

    def gradients(kind):
        return jax.jit(jax.grad(partial(loss, kind), (0, 1, 2), has_aux=True))(*arguments)

    want = gradients(stock)
    with require("kernel"):
        got = gradients(ours)
    assert_all(assert_close, got, want)


# Flax NNX


def nnx_cell(cell, **options):
    made = getattr(nnx, cell)(D, H, rngs=nnx.Rngs(0), **options)
    nnx.update(made, anew(nnx.state(made, nnx.Param)))
    return made


@of_nnx
@every_case
def test_nnx(cell, option, lengths):
    """Carries, outputs, and the gradients of parameters, inputs and carry."""
    options = OPTIONS[option]
    graph, state = nnx.split(nnx_cell(cell))

    def run(kind, state, x, carry):
        layer = kind(nnx.merge(graph, state), return_carry=True, rngs=False, **options)
        run = partial(layer, initial_carry=carry, seq_lengths=lengths)
        return results(run, x, lengths, "time_major" in options)

    arguments = state, normal((N, L, D)), carry_of(cell)
    assert_same_results(run, nnx.RNN, elman.jax.nnx.RNN, arguments)


@of_nnx
def test_nnx_overrides_and_first_carries():
    """Options of the call go before the constructor's; a carry of its own is the cell's."""
    cell = nnx_cell("GRUCell")
    x = normal((2, N, L, D))
    stock, ours = nnx.RNN(cell, reverse=True), elman.jax.nnx.RNN(cell, reverse=True)
    with require("kernel"):
        for options in ({}, {"reverse": False, "return_carry": True}, {"keep_order": True}):
            assert_all(assert_close, ours(x, **options), stock(x, **options))
    with pytest.warns(UserWarning, match="carry_init"):
        cell = nnx_cell("GRUCell", carry_init=jax.nn.initializers.ones)
    assert_close(elman.jax.nnx.RNN(cell)(x), nnx.RNN(cell)(x))


@of_nnx
def test_nnx_bidirectional():
    cells = nnx_cell("OptimizedLSTMCell"), nnx_cell("OptimizedLSTMCell")
    nnx.update(cells[1], jax.tree.map(lambda a: 2 * a, nnx.state(cells[1], nnx.Param)))
    x = normal((N, L, D))
    stock = nnx.Bidirectional(*map(nnx.RNN, cells), return_carry=True)
    ours = elman.jax.nnx.Bidirectional(*map(elman.jax.nnx.RNN, cells), return_carry=True)
    with require("kernel"):
        assert_all(assert_close, ours(x), stock(x))
        carries, outputs = ours(x, seq_lengths=LENGTHS)
    for n, length in enumerate(LENGTHS):
        alone = ours(x[n : n + 1, :length])
        assert_close(outputs[n, :length], alone[1][0])
        assert_all(assert_close, jax.tree.map(lambda a: a[n], carries), _first(alone[0]))  # noqa: B023


def _first(carries):
    return jax.tree.map(lambda a: a[0], carries)


@of_nnx
def test_nnx_padding():
    """It is not read, and gives zeros; a row of none of its steps ends as it began."""
    layer = elman.jax.nnx.RNN(nnx_cell("LSTMCell"), return_carry=True)
    x = normal((N, L, D))
    lengths = jnp.array([3, 0, L, 1])
    padding = jnp.arange(L) >= lengths[:, None]
    first = carry_of("LSTMCell")
    run = partial(layer, initial_carry=first, seq_lengths=lengths)
    carry, outputs = run(jnp.where(padding[..., None], jnp.nan, x))
    assert not outputs[padding].any()
    assert_all(assert_same_bits, run(x), (carry, outputs))
    for got, want in zip(carry, first, strict=True):
        assert_same_bits(got[1], want[1])


# Flax Linen


@every_case
def test_linen(cell, option, lengths):
    """Parameters are Flax's own; carries, outputs and gradients as above."""
    options, made = OPTIONS[option], getattr(linen, cell)(H)
    stock, ours = (
        kind(made, return_carry=True, **options) for kind in (linen.RNN, elman.jax.linen.RNN)
    )
    x = normal((N, L, D))
    parameters = made.init(jax.random.key(0), carry_of(cell), x[:, 0])["params"]

    def run(layer, parameters, x, carry):
        parameters = {"params": {"cell": parameters}}
        run = partial(layer.apply, parameters, initial_carry=carry, seq_lengths=lengths)
        return results(run, x, lengths, "time_major" in options)

    assert_same_results(run, stock, ours, (anew(parameters), x, carry_of(cell)))


def test_linen_bidirectional_in_a_model():
    """Under the names that Flax's have, so that a checkpoint loads into either."""

    def model(rnn, bidirectional):
        class Model(linen.Module):
            @linen.compact
            def __call__(self, x):
                both = [rnn(linen.GRUCell(H)) for _ in range(2)]
                return linen.Dense(2)(bidirectional(*both)(x))

        return Model()

    stock = model(linen.RNN, linen.Bidirectional)
    ours = model(elman.jax.linen.RNN, elman.jax.linen.Bidirectional)
    x = normal((N, L, D))
    parameters = ours.init(jax.random.key(0), x)
    assert_all(assert_same_bits, stock.init(jax.random.key(0), x), parameters)
    parameters = anew(parameters)
    with require("kernel"):
        assert_close(ours.apply(parameters, x), stock.apply(parameters, x))


# Of both: what the engine has not


OWN = {
    "another cell": ("MGUCell", {}, "float32"),
    "a residual": ("SimpleCell", {"residual": True}, "float32"),
    "another activation": ("LSTMCell", {"activation_fn": jnp.sin}, "float32"),
    "another gate": ("GRUCell", {"gate_fn": jax.nn.hard_sigmoid}, "float32"),
    "a type of its own": ("GRUCell", {"dtype": jnp.bfloat16}, "float32"),
    "inputs of another type": ("OptimizedLSTMCell", {}, "bfloat16"),
}


@pytest.mark.parametrize("case", OWN.values(), ids=OWN)
def test_flaxs_own_scan(case):
    """Is counted, gives what Flax gives, and is no kernel."""
    cell, options, dtype = case
    x = normal((N, L, D), dtype=dtype)
    stock, ours = (
        kind(getattr(linen, cell)(H, **options)) for kind in (linen.RNN, elman.jax.linen.RNN)
    )
    parameters = anew(stock.init(jax.random.key(0), x))
    pairs = [(partial(ours.apply, parameters), partial(stock.apply, parameters))]
    if HAS_NNX and hasattr(nnx, cell):
        made = nnx_cell(cell, **options)
        pairs.append((elman.jax.nnx.RNN(made), nnx.RNN(made)))
    for got, want in pairs:
        paths.clear()
        assert_same_bits(got(x), want(x))
        assert paths == {"own": 1}
        with require("kernel"), pytest.raises(RuntimeError, match=f"RNN of {cell}: path 'kernel'"):
            got(x)


def with_lora(cell):
    kernel = cell.dense_h.kernel[...]
    options = {"use_bias": False, "lora_rank": 2, "rngs": nnx.Rngs(0)}
    cell.dense_h = nnx.LoRALinear(*kernel.shape, **options)
    nnx.update(cell, anew(nnx.state(cell)))


def with_another_product(cell):
    cell.dense_i.dot_general = lambda *args, **options: 2 * jax.lax.dot_general(*args, **options)


@of_nnx
@pytest.mark.parametrize("change", [with_lora, with_another_product])
def test_layers_of_a_cell_replaced(change):
    """What somebody put into a cell is not passed over."""
    cell = nnx_cell("GRUCell")
    change(cell)
    x = normal((N, L, D))
    paths.clear()
    assert_same_bits(elman.jax.nnx.RNN(cell)(x), nnx.RNN(cell)(x))
    assert paths == {"own": 1}


def test_intercepted_layers():
    """As those who quantize do."""

    def doubled(run, args, options, context):
        result = run(*args, **options)
        return 2 * result if isinstance(context.module, linen.Dense) else result

    stock, ours = (kind(linen.GRUCell(H)) for kind in (linen.RNN, elman.jax.linen.RNN))
    x = normal((N, L, D))
    parameters = stock.init(jax.random.key(0), x)
    with linen.intercept_methods(doubled):
        assert_same_bits(ours.apply(parameters, x), stock.apply(parameters, x))


@pytest.mark.parametrize("shape", [(0, L, D), (N, 0, D), (L, D), (2, 0, L, D)])
def test_sizes(shape):
    """No rows, no steps, no batch."""
    cell, x = linen.OptimizedLSTMCell(H), normal(shape)
    stock, ours = (kind(cell, return_carry=True) for kind in (linen.RNN, elman.jax.linen.RNN))
    parameters = anew(stock.init(jax.random.key(0), normal((N, L, D))))
    with require("kernel"):
        assert_all(assert_close, ours.apply(parameters, x), stock.apply(parameters, x))


def flax_rnns():
    """Of both APIs, as functions: RNNs of a GRUCell."""
    module = elman.jax.linen.RNN(linen.GRUCell(H))
    parameters = module.init(jax.random.key(0), normal((N, L, D)))
    yield partial(module.apply, parameters)
    if HAS_NNX:
        yield elman.jax.nnx.RNN(nnx_cell("GRUCell"))


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((N, L, 4), {}, "inputs must be (*batch, L, D) with D = 3, got (4, 6, 4)"),
        ((D,), {}, "inputs must be (*batch, L, D) with D = 3, got (3,)"),
        (
            (L, N, 4),
            {"time_major": True},
            "inputs must be (L, *batch, D) with D = 3, got (6, 4, 4)",
        ),
        ((N, L, D), {"initial_carry": np.zeros((1, H), "f")}, "must have shape (4, 5), got (1, 5)"),
        (
            (N, L, D),
            {"initial_carry": (np.zeros((N, H), "f"),) * 2},
            "initial_carry must have shape (4, 5), got ((4, 5), (4, 5))",
        ),
        (
            (N, L, D),
            {"seq_lengths": np.ones((N, 1), int)},
            "seq_lengths must be integers of shape (4,), got int32 of (4, 1)",
        ),
        (
            (N, L, D),
            {"seq_lengths": np.ones(N, "f")},
            "seq_lengths must be integers of shape (4,), got float32 of (4,)",
        ),
    ],
)
def test_errors_of_flaxs(shape, given, message):
    for run in flax_rnns():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            run(normal(shape), **given)
        assert str(caught.value).startswith("RNN of GRUCell: ")
        assert message in str(caught.value)


@of_nnx
def test_relu():
    cell = nnx_cell("SimpleCell", activation_fn=jax.nn.relu)
    x = normal((N, L, D))
    with require("kernel"):
        assert_close(elman.jax.nnx.RNN(cell)(x), nnx.RNN(cell)(x))


@of_nnx
def test_half_precision():
    """Where all is of one such type; sums are float32, so that it is nearer than Flax."""
    init = jax.nn.initializers.normal()
    cell = nnx_cell("GRUCell", param_dtype=jnp.bfloat16, recurrent_kernel_init=init)
    x = normal((N, L, D), dtype="bfloat16")
    wide = nnx_cell("GRUCell")
    nnx.update(wide, jax.tree.map(lambda a: a.astype("float32"), nnx.state(cell, nnx.Param)))
    with require("kernel"):
        got = elman.jax.nnx.RNN(cell)(x)
    assert got.dtype == jnp.bfloat16
    want = nnx.RNN(wide)(x.astype("float32"))
    assert np.abs(got.astype("float32") - want).max() <= 2**-8 * np.abs(want).max()


# Equinox


def by_scan(cell, xs, state):
    def step(state, x):
        state = cell(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    return jax.lax.scan(step, state, xs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
def test_equinox(kind, bias):
    """Alone and mapped over a batch: states, outputs, and all gradients."""
    cell = getattr(eqx.nn, kind)(D, H, use_bias=bias, key=jax.random.key(0))
    xs = normal((N, L, D))
    state = (normal((N, H), 1), normal((N, H), 2)) if "LSTM" in kind else normal((N, H), 1)

    def of(scan):
        @eqx.filter_jit
        @eqx.filter_value_and_grad(has_aux=True)
        def run(arguments):
            cell, xs, state = arguments
            results = jax.vmap(partial(scan, cell))(xs, state)
            return sum((a**2).sum() for a in jax.tree.leaves(results)), results

        return run((cell, xs, state))

    want = of(by_scan)
    with require("kernel"):
        got = of(elman.jax.equinox.scan)
        one = elman.jax.equinox.scan(cell, xs[1], jax.tree.map(lambda a: a[1], state))
    assert_all(assert_close, got, want)
    assert_all(assert_same_bits, one, jax.tree.map(lambda a: a[1], got[0][1]))


def test_equinoxs_other_cells():
    def cell(x, state):
        return jnp.sin(x + state)

    xs, state = normal((L, D)), normal((D,), 1)
    paths.clear()
    assert_all(assert_same_bits, elman.jax.equinox.scan(cell, xs, state), by_scan(cell, xs, state))
    assert paths == {"own": 1}

    def of_trees(x, state):
        return jnp.sin(x["a"] + state)

    trees = {"a": xs}
    assert_all(
        assert_same_bits,
        elman.jax.equinox.scan(of_trees, trees, state),
        by_scan(of_trees, trees, state),
    )
    gru = eqx.nn.GRUCell(D, H, key=jax.random.key(0))
    lstm = eqx.nn.LSTMCell(D, H, key=jax.random.key(0))
    for cell, off, expected in ((gru, (state,), "h"), (lstm, [state] * 2, r"\(h, c\)")):
        with pytest.raises(TypeError, match=f"state must be {expected}, got <class"):
            elman.jax.equinox.scan(cell, xs, off)
    with require("kernel"), pytest.raises(RuntimeError, match="scan of GRUCell: path 'kernel'"):
        elman.jax.equinox.scan(gru, xs, jnp.zeros(H, jnp.bfloat16))
