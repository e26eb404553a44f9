"""The engine, through the NumPy door and by itself, against the reference of tests/reference.py."""

import itertools

import numpy as np
import pytest
from reference import assert_all_close, assert_all_same_bits, assert_close, assert_same_bits, run

import elman
from elman import _engine, engine, scan
from elman.engine import Extent
from elman.spec import CELLS, Weights

CELL_NAMES = list(CELLS)
DTYPES = ["float32", "float64"]
EXTENTS = ["whole", "lengths", "reset", "lengths and reset"]

SIZES = [  # L, N, D, H: multiples of nothing, or just of something
    (1, 1, 1, 1),
    (9, 3, 1, 1),
    (5, 1, 3, 15),
    (4, 2, 7, 16),
    (3, 5, 2, 17),
    (6, 7, 5, 31),
    (3, 19, 9, 33),
    (2, 9, 3, 65),
    (3, 2, 300, 4),  # sums over D in blocks
    (3, 3, 5, 270),  # sums over H in blocks
    (2, 4, 513, 257),  # three blocks, and one term more than a block
    (60, 17, 3, 5),  # weight gradients over more rows than a chunk holds
    (60, 13, 2, 130),  # gates of x over more rows than a chunk holds
    (4, 0, 3, 5),
    (0, 4, 3, 5),
    (0, 0, 3, 5),
]


def build(cell, *args, **kwargs):
    if cell == "gru":
        return elman.GRU(*args, **kwargs)
    return elman.RNN(*args, nonlinearity=cell.removeprefix("rnn_"), **kwargs)


def call_of(layer, steps, batch, extent, seed=0):
    """Random x, h_0, lengths, reset, and cotangents of output and h_n; the padding is NaN."""
    rng = np.random.default_rng(seed)
    spec = layer.spec
    states = spec.num_layers * spec.directions
    x = rng.normal(size=(steps, batch, spec.input_size)).astype(layer.dtype)
    h_0 = rng.normal(size=(states, batch, spec.hidden_size)).astype(layer.dtype)
    d_output = rng.normal(size=(steps, batch, spec.directions * spec.hidden_size))
    d_output = d_output.astype(layer.dtype)
    d_h_n = rng.normal(size=h_0.shape).astype(layer.dtype)
    lengths = reset = None
    if "lengths" in extent:
        lengths = rng.integers(0, steps + 1, batch)
        lengths[: min(batch, 2)] = [steps, 0][: min(batch, 2)]
        for n, length in enumerate(lengths):
            x[length:, n] = d_output[length:, n] = np.nan
    if "reset" in extent:
        reset = rng.random((steps, batch)) < 0.3
    return x, h_0, lengths, reset, d_output, d_h_n


def state_shape(layer, x):
    return layer.spec.num_layers * layer.spec.directions, x.shape[1], layer.spec.hidden_size


def check_against_reference(layer, x, h_0, lengths, reset, d_output, d_h_n):
    want, want_h_n, want_vjp = run(
        layer.spec.cell,
        layer.state_dict(),
        x,
        np.zeros(state_shape(layer, x)) if h_0 is None else h_0,
        lengths=lengths,
        reset=reset,
    )
    output, h_n = layer(x, h_0, lengths=lengths, reset=reset)
    assert output.dtype == h_n.dtype == layer.dtype
    assert_close(output, want, name="output")
    assert_close(h_n, want_h_n, name="h_n")
    kept_output, kept_h_n, vjp = layer.vjp(x, h_0, lengths=lengths, reset=reset)
    assert_same_bits(kept_output, output)
    assert_same_bits(kept_h_n, h_n)
    gradients = vjp(d_output, d_h_n)
    assert {g.dtype for g in gradients.values()} == {layer.dtype}
    assert_all_close(gradients, want_vjp(d_output, d_h_n), layer.dtype)
    return output, h_n, gradients


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_sizes(cell, dtype, size):
    steps, batch, D, H = size
    layer = build(cell, D, H, bidirectional=True, dtype=dtype, seed=1)
    for extent in ("whole", "lengths and reset"):
        check_against_reference(layer, *call_of(layer, steps, batch, extent))


@pytest.mark.every_isa
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_options(cell, bias, bidirectional, num_layers, extent):
    for dtype in DTYPES:
        layer = build(
            cell, 6, 19, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, seed=2
        )
        call = call_of(layer, 7, 5, extent)
        x, h_0, lengths, _, d_output, d_h_n = call
        output, h_n, gradients = check_against_reference(layer, *call)
        if lengths is not None:
            for n, length in enumerate(lengths):
                assert not output[length:, n].any()
                assert not gradients["x"][length:, n].any()
            assert_same_bits(h_n[:, 1], h_0[:, 1])  # a row of no steps
            if num_layers == 1:
                assert_same_bits(gradients["h_0"][:, 1], d_h_n[:, 1])
        check_against_reference(layer, x, None, *call[2:])
        for cotangents in ((None, d_h_n), (d_output, None), (None, None)):
            check_against_reference(layer, *call[:4], *cotangents)


def arguments_of_every_size(dtype):
    """From the smallest normal number to where everything is saturated, of both signs."""
    lowest, highest = np.log2(np.finfo(dtype).tiny), 10
    size = 2.0 ** np.linspace(lowest, highest, 20001)
    near = np.linspace(-20, 20, 20001)  # where the functions bend
    return np.concatenate([size, -size, near]).astype(dtype)


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_good_to_the_last_bits(dtype):
    a = arguments_of_every_size(dtype)
    rnn = elman.RNN(1, 1, bias=False, dtype=dtype)
    rnn.load_state_dict(
        {"weight_ih_l0": np.ones((1, 1), dtype), "weight_hh_l0": np.zeros_like(a[:1, None])}
    )
    got = rnn(a.reshape(1, -1, 1))[0].ravel()
    want = np.tanh(a.astype(np.longdouble))
    assert (np.abs(got - want) <= 2 * np.finfo(dtype).eps * np.abs(want)).all()


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_is_good_to_the_last_bits(dtype):
    """A GRU whose candidate is 0 and whose state is 1 gives its update gate."""
    a = arguments_of_every_size(dtype)
    gru = elman.GRU(1, 1, bias=False, dtype=dtype)
    gru.load_state_dict(
        {
            "weight_ih_l0": np.array([[0], [1], [0]], dtype),
            "weight_hh_l0": np.zeros((3, 1), dtype),
        }
    )
    got = gru(a.reshape(1, -1, 1), np.ones((1, a.size, 1), dtype))[0].ravel()
    with np.errstate(over="ignore"):  # where long double is double
        want = 1 / (1 + np.exp(-a.astype(np.longdouble)))
    # Below the smallest normal number its size is all that is right.
    smallest = 2 * np.finfo(dtype).tiny
    assert (np.abs(got - want) <= 2 * np.finfo(dtype).eps * np.abs(want) + smallest).all()


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_and_a_sum_round_once(dtype):
    """The second product is a hair less than half a unit in the last place of the first.

    Were it rounded before it is added, or the sum rounded twice, it would be a tie, and half of
    the units would go to their neighbour.
    """
    eps = np.finfo(dtype).eps
    for a in (1, 3, 100, 361):
        first = 1 + eps * np.arange(1, 20, dtype=dtype)
        weight = np.where(np.arange(19) % 4 < 2, 1, -1) * eps / 2 * (1 - a * eps)
        rnn = elman.RNN(2, 19, nonlinearity="relu", bias=False, dtype=dtype)
        rnn.load_state_dict(
            {
                "weight_ih_l0": np.stack([first, weight.astype(dtype)], axis=1),
                "weight_hh_l0": np.zeros((19, 19), dtype),
            }
        )
        output, _ = rnn(np.tile(np.array([1, 1 + a * eps], dtype), (1, 3, 1)))
        for row in output[0]:
            assert_same_bits(row, first)


@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_reset_at_the_first_step_leaves_h_0_unread(cell, bidirectional):
    layer = build(cell, 3, 5, bidirectional=bidirectional, seed=0)
    x, h_0, _, reset, d_output, d_h_n = call_of(layer, 4, 6, "reset")
    reset[0] = True
    h_0[0] = np.nan
    output, _, vjp = layer.vjp(x, h_0, reset=reset)
    assert np.isfinite(output).all()
    gradients = vjp(d_output, d_h_n)
    assert not gradients["h_0"][0].any()
    assert all(np.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_no_length_at_all(cell):
    """Every row has length 0: no step is taken, and h_0 comes back."""
    layer = build(cell, 3, 5, bidirectional=True, seed=0)
    x, h_0, _, _, d_output, d_h_n = call_of(layer, 4, 3, "whole")
    output, h_n, vjp = layer.vjp(np.full_like(x, np.nan), h_0, lengths=np.zeros(3, int))
    assert not output.any()
    assert_same_bits(h_n, h_0)
    gradients = vjp(d_output, d_h_n)
    assert_same_bits(gradients.pop("h_0"), d_h_n)
    assert not any(g.any() for g in gradients.values())


def with_gaps(a):
    """Every other element of a larger array, along every axis."""
    larger = np.full([2 * n + 1 for n in a.shape], np.nan).astype(a.dtype)
    view = larger[tuple(slice(1, None, 2) for _ in a.shape)]
    view[:] = a
    return view


def columns_of_wider(a):
    wider = np.full((*a.shape[:-1], a.shape[-1] + 5), np.nan).astype(a.dtype)
    wider[..., 3:-2] = a
    return wider[..., 3:-2]


def misaligned(a):
    memory = bytearray(a.nbytes + 1)
    view = np.ndarray(a.shape, a.dtype, memory, offset=1)
    view[:] = a
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = {
    "transposed": lambda a: a.T.copy().T,
    "first axes swapped": lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1),
    "backwards": lambda a: a[::-1].copy()[::-1],
    "backwards in every axis": lambda a: np.flip(np.flip(a).copy()),
    "with gaps": with_gaps,
    "columns of a wider array": columns_of_wider,
    "misaligned": misaligned,
    "read-only": read_only,
    "Fortran order": np.asfortranarray,
}


@pytest.mark.every_isa
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("D", [1, 6])
def test_layouts_of_memory_give_the_same_bits(layout, bidirectional, D):
    for cell, dtype in itertools.product(CELL_NAMES, DTYPES):
        layer = build(cell, D, 5, 2, bidirectional=bidirectional, dtype=dtype, seed=3)
        x, h_0, lengths, reset, d_output, d_h_n = call_of(layer, 4, 3, "lengths and reset")
        change = LAYOUTS[layout]
        output, h_n, vjp = layer.vjp(x, h_0, lengths=lengths, reset=reset)
        output_2, h_n_2, vjp_2 = layer.vjp(
            change(x),
            change(h_0),
            lengths=change(lengths) if layout in ("backwards", "misaligned") else lengths,
            reset=change(reset) if layout != "with gaps" else with_gaps(reset),
        )
        assert_same_bits(output_2, output)
        assert_same_bits(h_n_2, h_n)
        assert_all_same_bits(vjp_2(change(d_output), change(d_h_n)), vjp(d_output, d_h_n))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_broadcast_arrays_give_the_same_bits(cell, axis):
    """An axis of stride 0, as numpy.broadcast_to makes it."""
    layer = build(cell, 4, 5, seed=3, bidirectional=True)
    x, h_0, _, reset, d_output, d_h_n = call_of(layer, 6, 3, "reset")

    def widen(a):
        one = a.take([0], axis)
        return np.broadcast_to(one, a.shape)

    reset = np.broadcast_to(reset[:, :1], reset.shape)
    widened = [widen(a) for a in (x, h_0, d_output, d_h_n)]
    assert all(0 in a.strides for a in widened)
    x_2, h_0_2, d_output_2, d_h_n_2 = (a.copy() for a in widened)
    output, h_n, vjp = layer.vjp(x_2, h_0_2, reset=reset.copy())
    output_2, h_n_2, vjp_2 = layer.vjp(widened[0], widened[1], reset=reset)
    assert_same_bits(output_2, output)
    assert_same_bits(h_n_2, h_n)
    assert_all_same_bits(vjp_2(*widened[2:]), vjp(d_output_2, d_h_n_2))


@pytest.mark.parametrize("layout", ["Fortran order", "misaligned", "read-only", "with gaps"])
def test_layouts_of_weights_give_the_same_bits(layout):
    layer = elman.GRU(6, 5, dtype="float64", seed=0)
    weights = layer.state_dict()
    x, _, _, _, _, _ = call_of(layer, 4, 3, "whole")
    packed = engine.pack(layer.spec.cell, [LAYOUTS[layout](w) for w in weights.values()])
    output, _, _ = engine.forward(layer.spec.cell, packed, x, None, Extent(), 1)
    assert_same_bits(output, layer(x)[0])


@pytest.mark.every_isa
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_packed_rows_give_the_same_bits_as_padded_ones(cell, directions):
    """Packed: the rows of each step one behind the other, longest first."""
    for dtype in DTYPES:
        layer = build(cell, 4, 19, bidirectional=directions == 2, dtype=dtype, seed=4)
        steps, lengths = 6, np.array([6, 6, 4, 1, 1])
        x, h_0, _, _, d_output, d_h_n = call_of(layer, steps, len(lengths), "whole")
        runs = np.arange(steps)[:, None] < lengths
        output, h_n, vjp = layer.vjp(x, h_0, lengths=lengths)
        gradients = vjp(d_output, d_h_n)

        weights = list(layer.state_dict().values())
        packed = engine.pack(layer.spec.cell, weights)
        extent = Extent(batch_sizes=runs.sum(1))
        output_2, h_n_2, kept = engine.forward(
            layer.spec.cell, packed, x[runs], h_0, extent, 2, keep=True
        )
        assert_same_bits(output_2, output[runs])
        assert_same_bits(h_n_2, h_n)
        shapes = [w.shape for w in weights]
        d_x, d_h_0, d_weights = engine.backward(
            packed, shapes, x[runs], kept, d_output[runs], d_h_n, extent, 2
        )
        assert_same_bits(d_x, gradients["x"][runs])
        assert_same_bits(d_h_0, gradients["h_0"])
        for name, d in zip(layer.state_dict(), d_weights, strict=True):
            assert_same_bits(d, gradients[name], name)


def test_backward_leaves_out_what_is_not_needed():
    layer = elman.GRU(4, 5, seed=0)
    x, h_0, _, _, d_output, d_h_n = call_of(layer, 6, 3, "whole")
    weights = list(layer.state_dict().values())
    shapes = [w.shape for w in weights]
    packed = engine.pack(layer.spec.cell, weights)
    _, _, kept = engine.forward(layer.spec.cell, packed, x, h_0, Extent(), 1, keep=True)
    arguments = (packed, shapes, x, kept, d_output, d_h_n, Extent(), 1)
    d_x, d_h_0, d_weights = engine.backward(*arguments)
    no_x = engine.backward(*arguments, need_x=False)
    assert no_x[0] is None
    assert_same_bits(no_x[1], d_h_0)
    for got, want in zip(no_x[2], d_weights, strict=True):
        assert_same_bits(got, want)
    no_weights = engine.backward(*arguments, need_weights=False)
    assert no_weights[2] is None
    assert_same_bits(no_weights[0], d_x)
    assert_same_bits(no_weights[1], d_h_0)


@pytest.mark.parametrize("batch_sizes", [[3, 4], [2, 0], [-1]])
def test_batch_sizes_that_rise_or_are_not_positive(batch_sizes):
    layer = elman.RNN(2, 3)
    weights = engine.pack(layer.spec.cell, list(layer.state_dict().values()))
    batch_sizes = np.array(batch_sizes)
    x = np.zeros((max(batch_sizes.sum(), 1), 2), "float32")
    with pytest.raises(ValueError, match="RNN: batch_sizes must be positive and never rise"):
        _engine.forward(
            weights,
            x,
            np.zeros((len(x), 3), "float32"),
            np.zeros((1, max(batch_sizes[0], 1), 3), "float32"),
            None,
            None,
            None,
            batch_sizes,
            None,
            None,
            1,
        )


@pytest.mark.parametrize(
    ("wrong", "how"),
    [(name, "shape") for name in ("x", "output", "h_n", "h_0", "lengths", "reset")]
    + [(name, "dtype") for name in ("x", "output", "h_n", "h_0")],
)
def test_the_extension_touches_no_memory_that_does_not_fit(wrong, how):
    layer = elman.GRU(2, 3)
    weights = engine.pack(layer.spec.cell, list(layer.state_dict().values()))
    arrays = {
        "x": np.zeros((4, 5, 2), "float32"),
        "output": np.zeros((4, 5, 3), "float32"),
        "h_n": np.zeros((1, 5, 3), "float32"),
        "h_0": np.zeros((1, 5, 3), "float32"),
        "lengths": np.full(5, 4, "int64"),
        "reset": np.zeros((4, 5), bool),
    }
    rest = {"batch_sizes": None, "gates": None, "states": None, "threads": 1}
    _engine.forward(weights, **arrays, **rest)
    a = arrays[wrong]
    arrays[wrong] = a[1:] if how == "shape" else a.astype("float16")
    if how == "shape" and wrong in ("h_n", "h_0"):
        arrays[wrong] = a[:, 1:]
    with pytest.raises((ValueError, TypeError)):
        _engine.forward(weights, **arrays, **rest)


def test_the_extension_refuses_a_layer_without_units():
    """There is nothing to divide memory by."""
    empty = [np.zeros((0, 2), "float32"), np.zeros((0, 0), "float32"), None, None]
    with pytest.raises(ValueError, match="there is a hidden unit"):
        engine.pack(elman.GRU(2, 3).spec.cell, empty)


@pytest.mark.parametrize(("steps", "batch"), [(7, 5), (1, 1), (3, 0), (0, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_reference_loop_of_the_package(cell, bias, bidirectional, steps, batch):
    """scan.layer, which is written for any array library, on NumPy's arrays."""
    layer = build(cell, 4, 6, bias=bias, bidirectional=bidirectional, dtype="float64", seed=5)
    state = layer.state_dict()
    values = list(state.values())
    each = 4 if bias else 2
    weights = [Weights(*values[i : i + each]) for i in range(0, len(values), each)]
    for extent in EXTENTS:
        x, h_0, lengths, reset, _, _ = call_of(layer, steps, batch, extent)
        how = {"lengths": lengths, "reset": reset}
        want, want_h_n, _ = run(layer.spec.cell, state, x, h_0, **how)
        output, h_n = scan.layer(layer.spec.cell, x, h_0, weights, xp=np, **how)
        assert_close(output, want)
        assert_close(h_n, want_h_n)
