"""The same answer: a row's result does not depend on what else runs, or on how, to the last bit."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_all_same_bits, assert_same_bits

import elman

CELLS = ["rnn_tanh", "rnn_relu", "gru"]
DTYPES = ["float32", "float64"]
bounded = settings(max_examples=40, deadline=None, derandomize=True)


def build(cell, *args, **kwargs):
    if cell == "gru":
        return elman.GRU(*args, **kwargs)
    return elman.RNN(*args, nonlinearity=cell.removeprefix("rnn_"), **kwargs)


def normal(layer, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(layer.dtype)


def inputs(layer, steps, batch, seed=0):
    """Random x, h_0, and cotangents of output and h_n."""
    spec = layer.spec
    states = spec.num_layers * spec.directions
    return (
        normal(layer, steps, batch, spec.input_size, seed=seed),
        normal(layer, states, batch, spec.hidden_size, seed=seed + 1),
        normal(layer, steps, batch, spec.directions * spec.hidden_size, seed=seed + 2),
        normal(layer, states, batch, spec.hidden_size, seed=seed + 3),
    )


def results(layer, x, h_0, d_output, d_h_n, **how):
    """Everything that a call gives, by name."""
    output, h_n, vjp = layer.vjp(x, h_0, **how)
    return {"output": output, "h_n": h_n} | {
        f"d_{name}": d for name, d in vjp(d_output, d_h_n).items()
    }


layers = st.builds(
    build,
    st.sampled_from(CELLS),
    st.sampled_from([1, 3, 8, 300]),
    st.sampled_from([1, 4, 15, 16, 17, 33, 65]),
    st.integers(1, 2),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.just(0),
)


@pytest.mark.every_isa
@bounded
@given(
    layer=layers,
    steps=st.integers(1, 6),
    batch=st.integers(2, 21),
    place=st.integers(0, 20),
    bad=st.sampled_from([0.0, np.nan, np.inf]),
    lengths=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_row_alone_and_anywhere_in_a_batch(layer, steps, batch, place, bad, lengths, seed):
    """The other rows, whatever they hold, take no part: forward, d_x and d_h_0."""
    n = place % batch
    x, h_0, d_output, d_h_n = inputs(layer, steps, batch, seed)
    others = np.arange(batch) != n
    x[:, others] += bad
    h_0[:, others] += bad
    lengths = np.random.default_rng(seed).integers(0, steps + 1, batch) if lengths else None
    batched = results(layer, x, h_0, d_output, d_h_n, lengths=lengths)
    one = slice(n, n + 1)
    alone = results(
        layer,
        *(a[:, one] for a in (x, h_0, d_output, d_h_n)),
        lengths=None if lengths is None else lengths[one],
    )
    for name in ("output", "h_n", "d_x", "d_h_0"):
        assert_same_bits(batched[name][:, one], alone[name], name)


@bounded
@given(layer=layers, steps=st.integers(0, 6), extra=st.integers(1, 9), seed=st.integers(0, 99))
def test_padded_to_any_length_or_not(layer, steps, extra, seed):
    x, h_0, d_output, d_h_n = inputs(layer, steps, 3, seed)
    whole = results(layer, x, h_0, d_output, d_h_n)

    def padded(a):
        return np.concatenate([a, np.full((extra, *a.shape[1:]), np.nan, a.dtype)])

    lengths = np.full(3, steps)
    longer = results(layer, padded(x), h_0, padded(d_output), d_h_n, lengths=lengths)
    for name in ("output", "d_x"):
        assert not longer[name][steps:].any()
        longer[name] = longer[name][:steps]
    assert_all_same_bits(longer, whole)


@pytest.mark.every_isa
@bounded
@given(
    layer=layers.filter(lambda layer: layer.spec.directions == 1),
    steps=st.integers(1, 12),
    cuts=st.sets(st.integers(0, 12)),
    seed=st.integers(0, 99),
)
def test_whole_or_in_chunks_with_the_state_carried(layer, steps, cuts, seed):
    x, h_0, _, _ = inputs(layer, steps, 3, seed)
    output, h_n = layer(x, h_0)
    parts, h = [], h_0
    for part in np.split(x, sorted(cut for cut in cuts if cut < steps)):
        part_output, h = layer(part, h)
        parts.append(part_output)
    assert_same_bits(np.concatenate(parts), output, "output")
    assert_same_bits(h, h_n, "h_n")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_whole_or_cell_by_cell(cell, bias, dtype):
    layer = build(cell, 7, 19, bias=bias, dtype=dtype, seed=0)
    x, h_0, _, _ = inputs(layer, 5, 3)
    if cell == "gru":
        step = elman.GRUCell(7, 19, bias=bias, dtype=dtype)
    else:
        step = elman.RNNCell(7, 19, bias, cell.removeprefix("rnn_"), dtype=dtype)
    step.load_state_dict({k.removesuffix("_l0"): w for k, w in layer.state_dict().items()})
    output, h_n = layer(x, h_0)
    h = h_0[0]
    for t, x_t in enumerate(x):
        alone = step(x_t[1], h[1])  # one row, no batch
        h = step(x_t, h)
        assert_same_bits(h, output[t])
        assert_same_bits(alone, h[1])
    assert_same_bits(h, h_n[0])


@pytest.mark.parametrize("cell", CELLS)
def test_an_episode_alone_and_after_a_reset(cell):
    """A sequence cut by a reset gives what its two episodes give, each from zeros."""
    layer = build(cell, 5, 17, bidirectional=True, seed=0)
    x, _, d_output, _ = inputs(layer, 9, 4)
    reset = np.zeros((9, 4), bool)
    reset[6] = True
    output, _, vjp = layer.vjp(x, reset=reset)
    d_x = vjp(d_output, None)["x"]
    for episode in (slice(0, 6), slice(6, 9)):
        alone, _, vjp_alone = layer.vjp(x[episode])
        assert_same_bits(output[episode], alone)
        assert_same_bits(d_x[episode], vjp_alone(d_output[episode], None)["x"])


LARGE = {  # enough arithmetic for eight threads
    "rows divided": ((30, 40), (20, 64), {}),
    "units divided": ((25, 1), (30, 400), {}),
    "few rows": ((300, 3), (20, 64), {}),
    "rows divided, both directions": ((30, 40), (20, 64), {"bidirectional": True}),
    "units divided, both directions": ((15, 2), (9, 401), {"bidirectional": True}),
    "three layers": ((20, 33), (65, 63), {"num_layers": 3}),
}


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_threads(cell, dtype, size):
    (steps, batch), (D, H), options = LARGE[size]
    layer = build(cell, D, H, **options, dtype=dtype, seed=0)
    arguments = inputs(layer, steps, batch)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, steps + 1, batch)
    lengths[0] = steps
    for how in ({}, {"lengths": lengths, "reset": rng.random((steps, batch)) < 0.1}):
        elman.set_num_threads(1)
        one = results(layer, *arguments, **how)
        for threads in (2, 3, 8):
            elman.set_num_threads(threads)
            assert_all_same_bits(results(layer, *arguments, **how), one)


COUNT = """
import os, sys, numpy, elman
steps, batch, D, H, bidirectional = map(int, sys.argv[1:])
elman.set_num_threads(8)
elman.GRU(D, H, bidirectional=bool(bidirectional))(numpy.ones((steps, batch, D), "float32"))
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("size", LARGE)
def test_those_sizes_do_use_threads(size):
    """Else the test above would compare one thread with itself."""
    (steps, batch), (D, H), options = LARGE[size]
    bidirectional = int(options.get("bidirectional", False))
    arguments = map(str, (steps, batch, D, H, bidirectional))
    # NumPy's own threads would be counted too.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    count = subprocess.run(
        [sys.executable, "-c", COUNT, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(count.stdout) == 8


@pytest.mark.parametrize("size", ["rows divided", "units divided, both directions"])
def test_run_to_run(size):
    (steps, batch), (D, H), options = LARGE[size]
    layer = elman.GRU(D, H, **options, seed=0)
    arguments = inputs(layer, steps, batch)
    first = results(layer, *arguments)
    for _ in range(5):
        assert_all_same_bits(results(layer, *arguments), first)


@pytest.mark.parametrize("cell", CELLS)
def test_several_python_threads_at_once(cell):
    """On one layer that nobody has used before, so that they also meet where weights are packed."""
    layer = build(cell, 20, 64, bidirectional=True, seed=0)
    twin = build(cell, 20, 64, bidirectional=True, seed=0)
    calls = [inputs(layer, 30, 8 + i, seed=i) for i in range(4)]
    want = [results(twin, *call) for call in calls]
    elman.set_num_threads(3)
    start = threading.Barrier(len(calls))
    got = [[] for _ in calls]

    def work(i):
        start.wait()
        for _ in range(10):
            got[i].append(results(layer, *calls[i]))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "the calls wait for one another"
    for i, expected in enumerate(want):
        assert len(got[i]) == 10
        for result in got[i]:
            assert_all_same_bits(result, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_goes_through_as_ieee_says(cell, bad):
    """From its step on, in its row and nowhere else."""
    layer = build(cell, 3, 17, seed=0)
    x, h_0, _, _ = inputs(layer, 6, 5)
    clean, _ = layer(x, h_0)
    x[2, 3, 1] = bad
    output, h_n = layer(x, h_0)
    touched = np.zeros(output.shape[:2], bool)
    touched[2:, 3] = True
    assert_same_bits(output[~touched], clean[~touched])
    if np.isnan(bad):
        assert np.isnan(output[touched]).all()
        assert np.isnan(h_n[0, 3]).all()
    elif cell == "rnn_tanh":  # saturated
        weight = layer.state_dict()["weight_ih_l0"][:, 1]
        assert_same_bits(output[2, 3], np.sign(weight * bad))
    elif cell == "rnn_relu":  # infinite or cut off
        weight = layer.state_dict()["weight_ih_l0"][:, 1]
        assert_same_bits(output[2, 3], np.where(weight * bad > 0, np.inf, 0).astype("float32"))
    else:  # every gate is saturated
        assert np.isfinite(output[touched]).all()
        assert (np.abs(output[touched]) <= np.abs(h_0).max() + 1).all()
