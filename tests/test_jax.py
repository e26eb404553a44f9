"""The JAX package's functions: the engine's bits, and what they refuse."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from reference import assert_close, assert_same_bits, each

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
from jax_cases import (  # noqa: E402
    CELLS,
    EXTENTS,
    D,
    H,
    L,
    N,
    draw,
    function,
    run_by_scan,
    run_jax,
    run_numpy,
)

import elman  # noqa: E402
import elman.jax  # noqa: E402
from elman.jax import paths, require  # noqa: E402


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def assert_same(got, want):
    """Of results, or of gradients."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_engines_bits(cell, extent, reverse):
    """Outputs, final states and all gradients, of float32 and float64 in turn."""
    dtype = "float64" if EXTENTS.index(extent) % 2 else "float32"
    case = draw(cell, extent, dtype, bias=extent != "reset")
    with require("kernel"):
        results, (d_weights, d_x, d_first) = run_jax(cell, *case, reverse=reverse)
    want, (want_weights, want_x, want_first) = run_numpy(cell, *case, reverse=reverse)
    assert_same(results, want)
    assert_same(d_weights, want_weights)
    assert_same(d_first, want_first)
    assert_same_bits(d_x, want_x + np.zeros_like(want_x) if reverse else want_x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_half_precision(cell, dtype):
    """The states are float32, and so are all sums."""
    dtype = jnp.dtype(dtype)
    case = draw(cell, "both", dtype)
    assert_same(run_jax(cell, *case), run_numpy(cell, *case))


def test_half_precision_between_layers_and_of_the_first_state():
    """XLA might leave out a rounding that is undone at once; h_n has the type of h_0."""
    (weights, x, h_0), _, _ = draw("gru", dtype=jnp.dtype("bfloat16"), shape=(L, N, H, H))
    run = jax.jit(lambda x: elman.jax.gru(weights, elman.jax.gru(weights, x)[0])[0])
    one_by_one = elman.jax.gru(weights, elman.jax.gru(weights, x)[0])[0]
    assert_same_bits(run(x), one_by_one)
    half = jnp.asarray(h_0).astype(jnp.bfloat16)
    (_, h_n), (_, wide) = (elman.jax.gru(weights, x, h) for h in (half, half.astype("float32")))
    assert_same_bits(h_n, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 7), (1, 9), (0, 2), (3, 0), (2, 17)])
def test_sizes(cell, shape):
    """One step of up to 8 rows has a way of its own."""
    case = draw(cell, shape=(*shape, D, H))
    assert_same(run_jax(cell, *case), run_numpy(cell, *case))


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_without_a_batch_and_from_zeros(cell):
    (weights, x, states), _, extents = draw(cell, "both")
    run = function(cell)
    whole = run(weights, x, each(np.zeros_like, states), **extents)
    assert_same(run(weights, x, **extents), whole)
    output, final = run(
        weights, x[:, 1], lengths=extents["lengths"][1], reset=extents["reset"][:, 1]
    )
    assert_same_bits(output, whole[0][:, 1])
    assert_same(final, each(lambda a: a[1], whole[1]))


def test_lengths_of_any_integers():
    (weights, x, h_0), _, extents = draw("gru", "lengths")
    want = elman.jax.gru(weights, x, h_0, **extents)
    for dtype in ("int64", "uint8", "uint32"):
        lengths = extents["lengths"].astype(dtype)
        assert_same(elman.jax.gru(weights, x, h_0, lengths=lengths), want)


@pytest.mark.parametrize("length", [-1, L + 1, 2**40])
def test_lengths_out_of_range(length):
    """In a program that runs it is XLA's error; the next call is right."""
    (weights, x, _), _, _ = draw("gru")
    run = jax.jit(lambda lengths: elman.jax.gru(weights, x, lengths=lengths)[0])
    lengths = np.full(N, L)
    want = run(lengths)
    with pytest.raises(Exception, match=f"GRU: lengths must lie between 0 and L = {L}, got"):
        run(np.full(N, length)).block_until_ready()
    assert_same_bits(run(lengths), want)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", ["rnn_relu", "gru_reset_before", "lstm"])
def test_the_scan_gives_the_same_but_for_rounding(cell, reverse):
    """What other devices run."""
    (weights, x, states), _, extents = draw(cell, "both", "float64")
    want, want_final = function(cell, reverse=reverse)(weights, x, states, **extents)
    scan = partial(run_by_scan, cell, extents=extents, reverse=reverse)
    output, final = jax.jit(scan)(weights, x, states)
    assert_close(output, want)
    assert_close(final, want_final)


def compile_anew(x):
    (weights, _, _), _, _ = draw("gru")
    return jax.jit(lambda x: elman.jax.gru(weights, x)[0]).lower(x)


def test_paths():
    """They are counted when a program is compiled, by the device that it is for."""
    x = draw("gru")[0][1]
    paths.clear()
    compile_anew(x)
    assert paths == {"kernel": 1}
    with require("scan"), pytest.raises(RuntimeError, match="GRU: path 'scan' is required, but"):
        compile_anew(x)
    (weights, _, _), _, _ = draw("gru")
    jitted = jax.jit(lambda x: elman.jax.gru(weights, x)[0])
    paths.clear()
    text = jitted.trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert paths == {"scan": 1}
    assert "while" in text
    assert "elman" not in text
    with require("kernel"), pytest.raises(RuntimeError, match="GRU: path 'kernel' is required"):
        jax.jit(lambda x: elman.jax.gru(weights, x)[1]).trace(x).lower(lowering_platforms=("tpu",))
    with require("kernel"), pytest.raises(RuntimeError, match="but this call takes 'scan'"):
        jax.jvp(lambda x: elman.jax.gru(weights, x)[0], [x], [x])


def test_no_callback_into_python():
    text = compile_anew(draw("gru")[0][1]).as_text()
    assert text.count("@elman_forward") == 1
    assert "callback" not in text


def test_what_is_not_asked_for_is_not_computed():
    """Without gradients nothing is kept; of x alone no weights have theirs."""
    (weights, x, _), _, _ = draw("gru")

    def loss(weights, x):
        return elman.jax.gru(weights, x)[0].sum()

    plain = str(jax.make_jaxpr(loss)(weights, x))
    assert "keep=True" not in plain
    d_x = jax.jit(jax.grad(loss, 1)).lower(weights, x).as_text()
    d_weights = jax.jit(jax.grad(loss, 0)).lower(weights, x).as_text()
    matrix = f"tensor<{3 * H}x{D}xf32>"
    (of_x,), (of_weights,) = (
        [line.split("->")[-1] for line in text.splitlines() if "@elman_backward" in line]
        for text in (d_x, d_weights)
    )
    sequence = f"tensor<{L}x{N}x{D}xf32>"
    assert [matrix in of_x, sequence in of_x] == [False, True]
    assert [matrix in of_weights, sequence in of_weights] == [True, False]


def test_threads():
    """Their number changes nothing; a program takes what it finds when it runs."""
    case = draw("lstm", "lengths", shape=(20, 64, 64, 128))
    want = run_jax("lstm", *case)
    for threads in (1, 3):
        elman.set_num_threads(threads)
        assert_same(run_jax("lstm", *case), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": {}}, ValueError, "GRU: weights missing: ['weight_ih', 'weight_hh'], "),
        ({"weight_ih": np.ones((27, 4), "f")}, ValueError, "GRU: x must be (L, N, D) or (L, D)"),
        ({"weight_hh": np.ones((36, 9), "f")}, ValueError, "GRU: weight_hh must have shape"),
        ({"bias_hh": np.ones(3, "f")}, ValueError, "GRU: bias_hh must have shape (27,), got (3,)"),
        ({"bias_hh": np.ones(27)}, TypeError, "GRU: bias_hh must be float32, as x is, got float64"),
        ({"weight_hr": np.ones((2, 9), "f")}, ValueError, "unexpected: ['weight_hr']"),
        ({"weights": 1}, TypeError, "GRU: weights must be a mapping"),
        ({"x": np.ones((L, N, D), int)}, TypeError, "GRU: x must be float32, float64, bfloat16"),
        ({"x": np.ones((L, N, 1, D), "f")}, ValueError, "GRU: x must be (L, N, D) or (L, D)"),
        ({"x": np.float32(1)}, ValueError, "GRU: x must be (L, N, D) or (L, D) with D = 3, got ()"),
        ({"h_0": np.ones((1, H), "f")}, ValueError, "GRU: h_0 must have shape (5, 9), got (1, 9)"),
        ({"h_0": np.ones((N, H))}, TypeError, "GRU: h_0 must be float32, got float64"),
        ({"lengths": [1, 2]}, ValueError, "GRU: lengths must be integers of shape (5,)"),
        ({"lengths": np.ones(N)}, ValueError, "GRU: lengths must be integers of shape (5,), got f"),
        ({"reset": np.ones((L, N))}, ValueError, "GRU: reset must be booleans of shape (6, 5)"),
        ({"reset_after": 1}, TypeError, "GRU: reset_after must be a bool, got 1"),
        ({"reverse": "no"}, TypeError, "GRU: reverse must be a bool, got 'no'"),
        ({"x": None}, TypeError, "GRU: x must be an array, got <class 'NoneType'>"),
        ({"bias_hh": None}, TypeError, "GRU: bias_hh must be an array, got <class 'NoneType'>"),
        ({"h_0": "relu"}, TypeError, "GRU: h_0 must be an array, got <class 'str'>"),
        ({"lengths": [[1], []]}, TypeError, "GRU: lengths must be an array, got <class 'list'>"),
        ({"reset": "no"}, TypeError, "GRU: reset must be an array, got <class 'str'>"),
    ],
)
def test_errors(change, error, message):
    (weights, x, h_0), _, _ = draw("gru")
    given = {"weights": weights, "x": x, "h_0": h_0} | change
    for name in [name for name in change if name.startswith(("weight_", "bias_"))]:
        given["weights"] = given["weights"] | {name: given.pop(name)}
    with pytest.raises(error) as caught:
        elman.jax.gru(**given)
    assert message in str(caught.value)


def test_errors_of_the_others():
    (weights, x, states), _, _ = draw("lstm")
    with pytest.raises(TypeError, match="LSTM: expected \\(h, c\\), got <class"):
        elman.jax.lstm(weights, x, states[0])
    with pytest.raises(ValueError, match="LSTM: c_0 must have shape"):
        elman.jax.lstm(weights, x, (states[0], states[1][:1]))
    with pytest.raises(ValueError, match="RNN: nonlinearity must be 'tanh' or 'relu', got 'gelu'"):
        elman.jax.rnn(weights, x, nonlinearity="gelu")


def test_imports():
    """JAX comes with its package alone, Flax and Equinox with theirs."""
    code = """
import sys, elman
assert "jax" not in sys.modules
import elman.jax
assert not {"flax", "equinox", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
