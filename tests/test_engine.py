"""The engine, through the NumPy package and by itself, against the loop of tests/reference.py."""

import itertools

import doors
import numpy as np
import pytest
from reference import (
    assert_all_close,
    assert_all_same_bits,
    assert_close,
    assert_same_bits,
    each,
    parts,
    run,
    state_of,
)

import elman
from elman import _engine, engine, scan
from elman.engine import Extent
from elman.spec import CELLS, Weights, weight_names

PROJECTED = "lstm with a projection"
CELL_NAMES = [*CELLS, PROJECTED]
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
    (2, 3, 5, 520),  # a projection in blocks, and sums over it too
    (60, 17, 3, 5),  # weight gradients over more rows than a chunk holds
    (60, 13, 2, 130),  # gates of x over more rows than a chunk holds
    (4, 0, 3, 5),
    (0, 4, 3, 5),
    (0, 0, 3, 5),
]


def build(cell, D, H, *args, **kwargs):
    if cell == PROJECTED:
        return elman.LSTM(D, H, *args, proj_size=H // 2, **kwargs)
    return doors.build(elman, cell, D, H, *args, **kwargs)


def call_of(layer, steps, batch, extent, seed=0):
    """Random x, state, lengths, reset, and cotangents of output and state; the padding is NaN."""
    rng = np.random.default_rng(seed)
    spec = layer.spec

    def normal(shape):
        return rng.normal(size=shape).astype(layer.dtype)

    x, state = normal((steps, batch, spec.input_size)), state_of(spec, (batch,), normal)
    d_output = normal((steps, batch, spec.directions * spec.output_size))
    d_final = state_of(spec, (batch,), normal)
    lengths = reset = None
    if "lengths" in extent:
        lengths = rng.integers(0, steps + 1, batch)
        lengths[: min(batch, 2)] = [steps, 0][: min(batch, 2)]
        for n, length in enumerate(lengths):
            x[length:, n] = d_output[length:, n] = np.nan
    if "reset" in extent:
        reset = rng.random((steps, batch)) < 0.3
    return x, state, lengths, reset, d_output, d_final


def weights_of(layer):
    """Its lowest layer's, as the engine takes them."""
    weights = layer.state_dict()
    names = (name for d in range(layer.spec.directions) for name in weight_names(0, d))
    return [weights.get(name) for name in names]


def joined(state):
    """A state as the engine has it: [h | c]."""
    return np.concatenate(parts(state), -1)


def check_against_reference(layer, x, state, lengths, reset, d_output, d_final):
    want, want_final, want_vjp = run(
        layer.spec.cell,
        layer.state_dict(),
        x,
        state_of(layer.spec, x.shape[1:2], np.zeros) if state is None else state,
        lengths=lengths,
        reset=reset,
    )
    output, final = layer(x, state, lengths=lengths, reset=reset)
    assert {a.dtype for a in (output, *parts(final))} == {layer.dtype}
    assert_close(output, want, name="output")
    assert_close(final, want_final, name="final state")
    kept_output, kept_final, vjp = layer.vjp(x, state, lengths=lengths, reset=reset)
    assert_same_bits(kept_output, output)
    assert_same_bits(kept_final, final)
    gradients = vjp(d_output, d_final)
    assert {g.dtype for g in gradients.values()} == {layer.dtype}
    assert_all_close(gradients, want_vjp(d_output, d_final), layer.dtype)
    return output, final, gradients


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_sizes(cell, dtype, size):
    steps, batch, D, H = size
    layer = build(cell, D, H, bidirectional=True, dtype=dtype, seed=1)
    for extent in ("whole", "lengths and reset"):
        check_against_reference(layer, *call_of(layer, steps, batch, extent))


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize(
    ("bias", "bidirectional", "num_layers"),  # each pair of values
    [(False, False, 1), (False, True, 3), (True, False, 3), (True, True, 1)],
)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_options(cell, bias, bidirectional, num_layers, extent):
    for dtype in DTYPES:
        layer = build(
            cell, 6, 19, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, seed=2
        )
        call = call_of(layer, 7, 5, extent)
        x, state, lengths, _, d_output, d_final = call
        output, final, gradients = check_against_reference(layer, *call)
        if lengths is not None:
            for n, length in enumerate(lengths):
                assert not output[length:, n].any()
                assert not gradients["x"][length:, n].any()
            for after, before in zip(parts(final), parts(state), strict=True):
                assert_same_bits(after[:, 1], before[:, 1])  # a row of no steps
            if num_layers == 1:
                for name, d in zip(("h_0", "c_0"), parts(d_final), strict=False):
                    assert_same_bits(gradients[name][:, 1], d[:, 1])
        check_against_reference(layer, x, None, *call[2:])
        for cotangents in ((None, d_final), (d_output, None), (None, None)):
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
def test_a_reset_at_the_first_step_leaves_the_state_unread(cell, bidirectional):
    layer = build(cell, 3, 5, bidirectional=bidirectional, seed=0)
    x, state, _, reset, d_output, d_final = call_of(layer, 4, 6, "reset")
    reset[0] = True
    for a in parts(state):
        a[0] = np.nan
    output, _, vjp = layer.vjp(x, state, reset=reset)
    assert np.isfinite(output).all()
    gradients = vjp(d_output, d_final)
    for name in ("h_0", "c_0")[: len(layer.spec.cell.states)]:
        assert not gradients[name][0].any()
    assert all(np.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_no_length_at_all(cell):
    """Every row has length 0: no step is taken, and the state comes back."""
    layer = build(cell, 3, 5, bidirectional=True, seed=0)
    x, state, _, _, d_output, d_final = call_of(layer, 4, 3, "whole")
    output, final, vjp = layer.vjp(np.full_like(x, np.nan), state, lengths=np.zeros(3, int))
    assert not output.any()
    assert_same_bits(final, state)
    gradients = vjp(d_output, d_final)
    for name, d in zip(("h_0", "c_0"), parts(d_final), strict=False):
        assert_same_bits(gradients.pop(name), d)
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
        x, state, lengths, reset, d_output, d_final = call_of(layer, 4, 3, "lengths and reset")
        change = LAYOUTS[layout]

        def changed(state, change=change):
            return each(change, state)

        output, final, vjp = layer.vjp(x, state, lengths=lengths, reset=reset)
        output_2, final_2, vjp_2 = layer.vjp(
            change(x),
            changed(state),
            lengths=change(lengths) if layout in ("backwards", "misaligned") else lengths,
            reset=change(reset) if layout != "with gaps" else with_gaps(reset),
        )
        assert_same_bits(output_2, output)
        assert_same_bits(final_2, final)
        assert_all_same_bits(vjp_2(change(d_output), changed(d_final)), vjp(d_output, d_final))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_broadcast_arrays_give_the_same_bits(cell, axis):
    """An axis of stride 0, as numpy.broadcast_to makes it."""
    layer = build(cell, 4, 5, seed=3, bidirectional=True)
    x, state, _, reset, d_output, d_final = call_of(layer, 6, 3, "reset")

    def widen(a):
        a = np.broadcast_to(a.take([0], axis), a.shape)
        assert 0 in a.strides
        return a

    reset = np.broadcast_to(reset[:, :1], reset.shape)
    x, d_output = widen(x), widen(d_output)
    state, d_final = (each(widen, s) for s in (state, d_final))
    output, final, vjp = layer.vjp(x, state, reset=reset)
    copies, d_copies = (each(lambda a: a.copy(), s) for s in (state, d_final))
    output_2, final_2, vjp_2 = layer.vjp(x.copy(), copies, reset=reset.copy())
    assert_same_bits(output_2, output)
    assert_same_bits(final_2, final)
    assert_all_same_bits(vjp_2(d_output.copy(), d_copies), vjp(d_output, d_final))


@pytest.mark.parametrize("layout", ["Fortran order", "misaligned", "read-only", "with gaps"])
@pytest.mark.parametrize("cell", ["gru", PROJECTED])
def test_layouts_of_weights_give_the_same_bits(cell, layout):
    layer = build(cell, 6, 5, dtype="float64", seed=0)
    x, _, _, _, _, _ = call_of(layer, 4, 3, "whole")
    weights = [None if w is None else LAYOUTS[layout](w) for w in weights_of(layer)]
    packed = engine.pack(layer.spec.cell, weights)
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
        x, state, _, _, d_output, d_final = call_of(layer, steps, len(lengths), "whole")
        runs = np.arange(steps)[:, None] < lengths
        output, final, vjp = layer.vjp(x, state, lengths=lengths)
        gradients = vjp(d_output, d_final)

        weights = weights_of(layer)
        packed = engine.pack(layer.spec.cell, weights)
        extent = Extent(batch_sizes=runs.sum(1))
        output_2, final_2, kept = engine.forward(
            layer.spec.cell, packed, x[runs], joined(state), extent, 2, keep=True
        )
        assert_same_bits(output_2, output[runs])
        assert_same_bits(final_2, joined(final))
        shapes = [None if w is None else w.shape for w in weights]
        d_x, d_first, d_weights = engine.backward(
            packed, shapes, x[runs], kept, d_output[runs], joined(d_final), extent, 2
        )
        assert_same_bits(d_x, gradients["x"][runs])
        states = [gradients[name] for name in ("h_0", "c_0") if name in gradients]
        assert_same_bits(d_first, np.concatenate(states, -1))
        there = [d for d in d_weights if d is not None]
        for name, d in zip(layer.state_dict(), there, strict=True):
            assert_same_bits(d, gradients[name], name)


@pytest.mark.parametrize("cell", CELL_NAMES)
def test_backward_leaves_out_what_is_not_needed(cell):
    layer = build(cell, 4, 5, seed=0)
    x, state, _, _, d_output, d_final = call_of(layer, 6, 3, "whole")
    weights = weights_of(layer)
    shapes = [None if w is None else w.shape for w in weights]
    packed = engine.pack(layer.spec.cell, weights)
    _, _, kept = engine.forward(layer.spec.cell, packed, x, joined(state), Extent(), 1, keep=True)
    arguments = (packed, shapes, x, kept, d_output, joined(d_final), Extent(), 1)
    d_x, d_first, d_weights = engine.backward(*arguments)
    no_x = engine.backward(*arguments, need_x=False)
    assert no_x[0] is None
    assert_same_bits(no_x[1], d_first)
    for got, want in zip(no_x[2], d_weights, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_same_bits(got, want)
    no_weights = engine.backward(*arguments, need_weights=False)
    assert no_weights[2] is None
    assert_same_bits(no_weights[0], d_x)
    assert_same_bits(no_weights[1], d_first)


@pytest.mark.parametrize("batch_sizes", [[3, 4], [2, -1], [-1]])
def test_batch_sizes_that_rise_or_are_negative(batch_sizes):
    layer = elman.RNN(2, 3)
    weights = engine.pack(layer.spec.cell, weights_of(layer))
    batch_sizes = np.array(batch_sizes)
    x = np.zeros((max(*batch_sizes, 1), 2), "float32")
    with pytest.raises(ValueError, match="RNN: batch_sizes must not be negative and never rise"):
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
@pytest.mark.parametrize("cell", ["gru", "lstm", PROJECTED])
def test_the_extension_touches_no_memory_that_does_not_fit(cell, wrong, how):
    layer = build(cell, 2, 3)
    weights = engine.pack(layer.spec.cell, weights_of(layer))
    P, S = layer.spec.output_size, sum(layer.spec.state_sizes.values())
    arrays = {
        "x": np.zeros((4, 5, 2), "float32"),
        "output": np.zeros((4, 5, P), "float32"),
        "h_n": np.zeros((1, 5, S), "float32"),
        "h_0": np.zeros((1, 5, S), "float32"),
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
    empty = [np.zeros((0, 2), "float32"), np.zeros((0, 0), "float32"), None, None, None]
    with pytest.raises(ValueError, match="there is a hidden unit"):
        engine.pack(elman.GRU(2, 3).spec.cell, empty)


@pytest.mark.parametrize(("steps", "batch"), [(7, 5), (1, 1), (3, 0), (0, 3)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_reference_loop_of_the_package(cell, bias, bidirectional, steps, batch):
    """scan.layer, which is written for any array library, on NumPy's arrays."""
    layer = build(cell, 4, 6, bias=bias, bidirectional=bidirectional, dtype="float64", seed=5)
    values = weights_of(layer)
    fields = len(Weights._fields)
    weights = [Weights(*values[i : i + fields]) for i in range(0, len(values), fields)]
    for extent in EXTENTS:
        x, state, lengths, reset, _, _ = call_of(layer, steps, batch, extent)
        how = {"lengths": lengths, "reset": reset}
        want, want_final, _ = run(layer.spec.cell, layer.state_dict(), x, state, **how)
        output, final = scan.layer(layer.spec.cell, x, joined(state), weights, xp=np, **how)
        assert_close(output, want)
        assert_close(final, joined(want_final))


@pytest.mark.parametrize("cell", ["gru", "lstm", PROJECTED])
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("recompute", [False, True])
def test_output_of_every_state(cell, extent, recompute):
    """As the loop gives it, and its gradients as torch finds them through the loop."""
    torch = pytest.importorskip("torch")
    layer = build(cell, 5, 17, bidirectional=True, dtype="float64")
    x, state, lengths, reset, _, d_final = call_of(layer, 9, 7, extent)
    state, d_final, spec = joined(state), joined(d_final), layer.spec
    weights, extents = weights_of(layer), Extent(lengths, reset)
    packed = engine.pack(spec.cell, weights)
    output, final, kept = engine.forward(
        spec.cell, packed, x, state, extents, 2, True, recompute, whole=True
    )
    d_output = np.random.default_rng(1).normal(size=output.shape)
    shapes = [None if w is None else w.shape for w in weights]
    got = engine.backward(packed, shapes, x, kept, d_output, d_final, extents, 2)

    def tensor(a):
        return None if a is None else torch.tensor(a, requires_grad=a.dtype == np.float64)

    leaves = [tensor(a) for a in (x, state, *weights)]
    each_direction = [Weights(*leaves[i : i + 5]) for i in (2, 7)]
    want, want_final = scan.layer(
        spec.cell,
        *leaves[:2],
        each_direction,
        xp=torch,
        lengths=tensor(lengths),
        reset=tensor(reset),
        whole=True,
    )
    ends = np.full(7, 9) if lengths is None else lengths
    d_output[np.arange(9)[:, None] >= ends] = 0  # where output is 0, whatever its gradient
    assert_close(output, want.detach())
    assert_close(final, want_final.detach())
    there = [t for t in leaves if t is not None]
    want = torch.autograd.grad([want, want_final], there, [tensor(d_output), tensor(d_final)])
    got = [got[0], got[1], *(d for d in got[2] if d is not None)]
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
