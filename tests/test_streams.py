"""Streams: the bits of the whole, without memory, whatever a step is given and however often."""

import threading
import tracemalloc
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
from doors import CELLS, DTYPES, FULL, cases, make, numpy_layer
from hypothesis import given
from reference import assert_same_bits, each, parts

import elman

LAYERS = [elman.RNN, elman.GRU, elman.LSTM]


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def stream_of(case, layer):
    stream = layer.stream(case.x.shape[1])
    stream.state = case.state
    return stream


one_direction = cases(steps=(1, 9), batch=(1, 9), bidirectional=False)


@pytest.mark.every_isa
@given(case=one_direction)
def test_steps_and_blocks_have_the_bits_of_the_whole(case):
    layer, case = numpy_layer(case), replace(case, lengths=None)
    for reset in (None, case.reset):
        want, want_final = layer(case.x, case.state, reset=reset)
        stream = stream_of(case, layer)
        out = np.empty_like(want[0])
        for t, x_t in enumerate(case.x):
            if reset is not None:
                stream.reset(reset[t])
            if t % 3 == 0:
                assert_same_bits(stream.step(x_t), want[t])
            elif t % 3 == 1:
                assert stream.step(x_t, out) is out
                assert_same_bits(out, want[t])
            else:
                assert_same_bits(stream.run(x_t[None]), want[t : t + 1])
        assert_same_bits(stream.state, want_final)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_blocks_of_any_length_and_none(cell, dtype):
    case = make(cell, 3, 20, 12, 2, dtype, num_layers=2, extents=False)
    layer = numpy_layer(case)
    want, want_final = layer(case.x, case.state)
    stream = stream_of(case, layer)
    blocks = [stream.run(case.x[a:b]) for a, b in ((0, 5), (5, 5), (5, 6), (6, 12))]
    assert_same_bits(np.concatenate(blocks), want)
    assert_same_bits(stream.state, want_final)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_row_without_its_axis(kind):
    layer, x = kind(3, 20, num_layers=2, seed=0), normal(8, 3)
    want, want_final = layer(x)
    stream = layer.stream()
    out = np.empty(20, "float32")
    assert_same_bits(stream.step(x[0]), want[0])
    assert_same_bits(stream.step(x[1:2]), want[1:2])
    assert_same_bits(stream.step(x[2], out), want[2])
    assert_same_bits(stream.run(x[3:6]), want[3:6])
    assert_same_bits(stream.run(x[6:, None]), want[6:, None])
    assert_same_bits(stream.state, each(lambda a: a[:, None], want_final))


def test_batch_first():
    layer, x = elman.GRU(3, 4, batch_first=True, seed=0), normal(2, 6, 3)
    want, stream = layer(x)[0], layer.stream(rows=2)
    assert_same_bits(stream.run(x[:, :4]), want[:, :4])
    assert_same_bits(stream.step(x[:, 4]), want[:, 4])
    apart = x[:, 5].repeat(2, -1)[:, ::2]
    assert_same_bits(stream.step(apart), want[:, 5])
    with pytest.raises(ValueError, match=r"^GRU: x must have 2 rows, got \(6, 2, 3\)$"):
        stream.run(x.swapaxes(0, 1))


def test_large_steps_on_several_threads():
    elman.set_num_threads(3)
    layer, x = elman.GRU(64, 700, seed=0), normal(3, 8, 64)
    want, stream = layer(x)[0], layer.stream(8)
    for x_t, want_t in zip(x, want, strict=True):
        assert_same_bits(stream.step(x_t), want_t)


LAID_OUT = {
    "features apart": lambda a: a.repeat(2, -1)[..., ::2],
    "rows from the last": lambda a: a[::-1].copy()[::-1],
    "by columns": np.asfortranarray,
    "unaligned": lambda a: unaligned(a),
    "within more": lambda a: np.pad(a, 3)[3:-3, 3:-3],
}


def unaligned(a):
    copy = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    copy[:] = a
    return copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lie", LAID_OUT)
def test_wherever_x_and_out_lie(lie, dtype):
    case = make("lstm", 5, 7, 4, 3, dtype, extents=False)
    layer = numpy_layer(case)
    want, stream = layer(case.x, case.state)[0], stream_of(case, layer)
    for t in range(3):
        out = LAID_OUT[lie](want[3])
        assert stream.step(LAID_OUT[lie](case.x[t]), out) is out
        assert_same_bits(out, want[t])


@pytest.mark.parametrize(("size", "rows"), [(30, 2), (700, 8)])
def test_output_where_x_was(size, rows):
    """The larger on several threads, which do not wait until all have read x."""
    elman.set_num_threads(3)
    layer, x = elman.RNN(size, size, seed=0), normal(60, rows, size)
    want, stream = layer(x)[0], layer.stream(rows)
    memory = np.zeros((rows + 1, size), "float32")
    for t, x_t in enumerate(x):
        memory[:rows] = x_t
        assert_same_bits(stream.step(memory[:rows], memory[t % 2 :][:rows]), want[t])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", FULL)
def test_a_step_takes_no_memory(kind, dtype):
    """Of Python's and NumPy's; the engine's is counted in engine/steps.cpp."""
    stream = kind(64, 64, num_layers=2, dtype=dtype, seed=0).stream(2)
    x, out = zeros(2, 64, dtype=dtype), zeros(2, 64, dtype=dtype)
    step = stream.step
    tracemalloc.start()
    try:
        for _ in repeat(None, 100):
            step(x, out)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in repeat(None, 100):
            step(x, out)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < 256  # less than a row; the loop's own


@pytest.mark.parametrize("kind", LAYERS)
def test_streams_of_one_layer_in_threads_of_their_own(kind):
    """Large enough to run at once, without the interpreter's lock."""
    layer = kind(8, 200, num_layers=2, seed=0)
    xs = [normal(100, 3, 8, seed=seed) for seed in range(4)]
    wants = [layer(x)[0] for x in xs]
    layer.load_state_dict(layer.state_dict())  # packed anew, by whoever is first
    meet, wrong = threading.Barrier(4), []

    def work(x, want):
        meet.wait()
        stream = layer.stream(3)
        for x_t, want_t in zip(x, want, strict=True):
            if stream.step(x_t).tobytes() != want_t.tobytes():
                wrong.append(x_t)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(xs, wants, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_are_those_of_the_making():
    layer, other, x = elman.GRU(3, 4, seed=0), elman.GRU(3, 4, seed=1), normal(6, 3)
    want = layer(x)[0]
    stream = layer.stream()
    assert_same_bits(stream.run(x[:2]), want[:2])
    layer.load_state_dict(other.state_dict())
    assert_same_bits(stream.run(x[2:4]), want[2:4])
    assert_same_bits(stream.step(x[4]), want[4])
    assert_same_bits(layer.stream().run(x), other(x)[0])


def test_dropout_takes_no_effect():
    layer, x = elman.GRU(3, 4, 2, dropout=0.5, seed=0), normal(6, 3)
    want = layer(x)[0]
    stream = layer.train().stream()
    assert_same_bits(stream.run(x), want)
    assert layer.training


@pytest.mark.parametrize("kind", LAYERS)
def test_states_go_in_and_out_as_copies(kind):
    layer = kind(3, 4, num_layers=2, seed=0)
    stream, x = layer.stream(3), normal(3, 3)
    assert all(a.shape == (2, 3, 4) and not a.any() for a in parts(stream.state))
    stream.step(x)
    state = stream.state
    want = stream.step(x).copy()
    other = layer.stream(3)
    other.state = state
    for a in parts(state):
        a[:] = np.nan
    for a in parts(other.state):
        a[:] = np.nan
    assert_same_bits(other.step(x), want)
    assert_same_bits(other.state, stream.state)


ROWS = {
    "all": (None, [0, 1, 2]),
    "one": (1, [1]),
    "numpy's": (np.int64(2), [2]),
    "several": ([2, 0], [0, 2]),
    "twice": (np.array([1, 1], "uint8"), [1]),
    "a mask": (np.array([False, True, True]), [1, 2]),
    "a list of booleans": ([True, False, False], [0]),
    "none": (np.flatnonzero([0, 0, 0]), []),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rows", ROWS)
def test_reset(kind, rows):
    given, chosen = ROWS[rows]
    stream = kind(3, 4, num_layers=2, seed=0).stream(3)
    stream.step(normal(3, 3))
    want = stream.state
    for a in parts(want):
        assert a.all()
        a[:, chosen] = 0
    stream.reset(given)
    assert_same_bits(stream.state, want)


# Errors


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (0, ValueError, r"rows must lie between 1 and 2\*\*31 - 1, got 0"),
        (2**31, ValueError, r"rows must lie between 1 and 2\*\*31 - 1, got 2147483648"),
        (1.0, TypeError, "rows must be an int, got 1.0"),
        (True, TypeError, "rows must be an int, got True"),
        (None, TypeError, "rows must be an int, got None"),
    ],
)
def test_rows_that_are_none(kind, rows, error, message):
    with pytest.raises(error, match=f"^{kind.__name__}: {message}$"):
        kind(3, 4).stream(rows)


@pytest.mark.parametrize("kind", LAYERS)
def test_two_directions_are_no_stream(kind):
    message = f"^{kind.__name__}: a stream has one direction, got bidirectional=True$"
    with pytest.raises(ValueError, match=message):
        kind(3, 4, bidirectional=True).stream()


read_only = zeros(2, 4)
read_only.flags.writeable = False

# For streams of two rows, or one, of layers (4, 4).
STEP_ERRORS = [
    (1, (zeros(1, 5),), ValueError, r"x must have shape \(1, 4\), got \(1, 5\)"),
    (1, (zeros(5),), ValueError, r"x must have shape \(4,\), got \(5,\)"),
    (1, (zeros(2, 4),), ValueError, r"x must have shape \(1, 4\), got \(2, 4\)"),
    (1, (zeros(1, 1, 4),), ValueError, r"x must have shape \(1, 4\), got \(1, 1, 4\)"),
    (2, (zeros(4),), ValueError, r"x must have shape \(2, 4\), got \(4,\)"),
    (2, (zeros(1, 4),), ValueError, r"x must have shape \(2, 4\), got \(1, 4\)"),
    (2, (0.0,), TypeError, "x must be float32, got float64"),
    (2, (zeros(2, 4, dtype="float64"),), TypeError, "x must be float32, got float64"),
    (2, (None,), TypeError, "x must be float32, got object"),
    (2, (zeros(2, 4), zeros(2, 5)), ValueError, r"out must have shape \(2, 4\), got \(2, 5\)"),
    (1, (zeros(4), zeros(1, 4)), ValueError, r"out must have shape \(4,\), got \(1, 4\)"),
    (1, (zeros(1, 4), zeros(4)), ValueError, r"out must have shape \(1, 4\), got \(4,\)"),
    (2, (zeros(2, 4), zeros(2, 4, dtype="f8")), TypeError, "out must be float32, got float64"),
    (2, (zeros(2, 4), [0] * 4), TypeError, "out must be an array, got <class 'list'>"),
    (2, (zeros(2, 4), read_only), ValueError, "out is read-only"),
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("rows", "arguments", "error", "message"), STEP_ERRORS)
def test_arguments_of_a_step(kind, rows, arguments, error, message):
    stream = kind(4, 4, seed=0).stream(rows)
    stream.step(normal(rows, 4))
    before = stream.state
    with pytest.raises(error, match=f"^{kind.__name__}: {message}$"):
        stream.step(*arguments)
    assert_same_bits(stream.state, before)


def test_a_stream_in_half_precision_takes_no_float32():
    with pytest.raises(TypeError, match=r"^GRU: x must be float16, got float32$"):
        elman.GRU(4, 4, dtype="float16").stream(2).step(zeros(2, 4))


RUN_ERRORS = [
    (2, zeros(5, 4), ValueError, r"x must have 2 rows, got \(5, 4\)"),
    (2, zeros(5, 1, 4), ValueError, r"x must have 2 rows, got \(5, 1, 4\)"),
    (1, zeros(5, 2, 4), ValueError, r"x must have 1 rows, got \(5, 2, 4\)"),
    (1, zeros(4), ValueError, r"x must be \(L, N, D\) or \(L, D\) with D = 4, got \(4,\)"),
    (1, zeros(5, 3), ValueError, r"x must be \(L, N, D\) or \(L, D\) with D = 4, got \(5, 3\)"),
    (1, zeros(5, 4, dtype="int32"), TypeError, "x must be float32, got int32"),
]


@pytest.mark.parametrize(("rows", "x", "error", "message"), RUN_ERRORS)
def test_arguments_of_a_block(rows, x, error, message):
    stream = elman.LSTM(4, 4, seed=0).stream(rows)
    stream.step(normal(rows, 4))
    before = stream.state
    with pytest.raises(error, match=f"^LSTM: {message}$"):
        stream.run(x)
    assert_same_bits(stream.state, before)


STATE_ERRORS = [
    (zeros(1, 3, 4), ValueError, r"h must have shape \(1, 2, 4\), got \(1, 3, 4\)"),
    (zeros(2, 4), ValueError, r"h must have shape \(1, 2, 4\), got \(2, 4\)"),
    (zeros(1, 2, 4, dtype="float64"), TypeError, "h must be float32, got float64"),
    (None, TypeError, "h must be float32, got object"),
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("state", "error", "message"), STATE_ERRORS)
def test_states_that_do_not_fit_change_nothing(kind, state, error, message):
    stream = kind(4, 4, seed=0).stream(2)
    stream.step(normal(2, 4))
    before = stream.state
    given = {"h": state}
    if kind is elman.LSTM:
        given = {"h": (state, zeros(1, 2, 4)), "c": (zeros(1, 2, 4), state)}
    for name, value in given.items():
        with pytest.raises(error, match=f"^{kind.__name__}: {name}{message.removeprefix('h')}$"):
            stream.state = value
        assert_same_bits(stream.state, before)


def test_states_that_are_no_pair():
    stream = elman.LSTM(4, 4).stream()
    with pytest.raises(TypeError, match=r"^LSTM: expected \(h, c\), got <class 'numpy.ndarray'>$"):
        stream.state = zeros(1, 1, 4)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (3, ValueError, "rows must lie between 0 and 2, got 3"),
        ([0, -1], ValueError, r"rows must lie between 0 and 2, got \[0, -1\]"),
        ([True], ValueError, r"a mask of rows must be of shape \(3,\), got \(1,\)"),
        (True, ValueError, r"a mask of rows must be of shape \(3,\), got \(\)"),
        (1.0, TypeError, "rows must be integers or a mask of booleans, got float64"),
        ("all", TypeError, "rows must be integers or a mask of booleans, got <U3"),
    ],
)
def test_rows_that_are_not_there(rows, error, message):
    stream = elman.GRU(4, 4, seed=0).stream(3)
    stream.step(normal(3, 4))
    before = stream.state
    with pytest.raises(error, match=f"^GRU: {message}$"):
        stream.reset(rows)
    assert_same_bits(stream.state, before)
