"""The same answer: a row's result does not depend on what else runs, or on how, to the last bit.

Each promise in every package, on cases that hypothesis draws. Threads, memory and instruction sets
have files of their own: ``test_exact_threads.py``, ``test_exact_memory.py`` and ``test_isa.py``.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from doors import (
    CELLS,
    DOORS,
    DTYPES,
    array,
    cases,
    cell_of,
    final_of,
    fit_mlx,
    make,
    numpy_cell,
    numpy_layer,
    run_numpy,
    tensor,
    widened,
)
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_all_same_bits, assert_same_bits, each, parts

every_door = pytest.mark.parametrize("door", DOORS)


def by_row(results):
    """All but the gradients of weights, which are sums over the rows."""
    return [name for name in results if not name.startswith(("d_weight", "d_bias"))]


@pytest.mark.every_isa
@every_door
@given(
    case=cases(batch=(2, 21)),
    place=st.integers(0, 20),
    bad=st.sampled_from([1.0, np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 99),
)
def test_a_row_alone_and_anywhere_in_a_batch(door, case, place, bad, seed):
    """The other rows, whatever they hold, take no part: forward, d_x and d_h_0."""
    run, batch = DOORS[door], case.x.shape[1]
    row = place % batch
    alone = run(case.rows([row]))
    order = np.random.default_rng(seed).permutation(batch)
    batched = run(case.rows(order))
    others = np.arange(batch) != row
    with np.errstate(invalid="ignore"):  # of 0
        for name in case.arrays().keys() - {"lengths", "reset"}:
            getattr(case, name)[:, others] *= bad
    among_bad = run(case)
    for name in by_row(alone):
        assert_same_bits(batched[name][:, order == row], alone[name], name)
        assert_same_bits(among_bad[name][:, [row]], alone[name], name)


@pytest.mark.every_isa
@every_door
@given(case=cases(), extra=st.integers(1, 9))
def test_padded_to_any_length_or_not(door, case, extra):
    """What is past a row's length is not read, and changes no bit, weight gradients included."""
    steps, batch = case.x.shape[:2]
    if case.lengths is None:
        case = replace(case, lengths=np.full(batch, steps))

    def padded(a):
        return np.concatenate([a, np.full((extra, *a.shape[1:]), np.nan, a.dtype)])

    for n, length in enumerate(case.lengths):
        case.x[length:, n] = np.nan
        case.d_output[length:, n] = np.nan
    longer = replace(case, x=padded(case.x), d_output=padded(case.d_output))
    if case.reset is not None:
        # A new episode may be said to start there as well.
        longer = replace(longer, reset=np.pad(case.reset, ((0, extra), (0, 0)), "edge"))
    got, want = DOORS[door](longer), DOORS[door](case)
    for name in ("output", "d_x"):
        assert not got[name][steps:].any()
        got[name] = got[name][:steps]
    assert_all_same_bits(got, want)


@every_door
@given(case=cases(steps=(2, 6), extents=False))
def test_full_lengths_and_no_resets_are_none(door, case):
    steps, batch = case.x.shape[:2]
    said = replace(case, lengths=np.full(batch, steps), reset=np.zeros((steps, batch), bool))
    assert_all_same_bits(DOORS[door](said), DOORS[door](case))


@pytest.mark.every_isa
@every_door
@given(case=cases(steps=(1, 12), bidirectional=False), cuts=st.sets(st.integers(1, 11)))
def test_whole_or_in_chunks_with_the_state_carried(door, case, cuts):
    uncut = DOORS[door](case)
    steps = len(case.x)
    edges = [0, *sorted(cut for cut in cuts if cut < steps), steps]
    outputs, state = [], case.state
    for start, stop in itertools.pairwise(edges):
        part = case.steps(slice(start, stop), state)
        if case.lengths is not None:
            part = replace(part, lengths=np.clip(case.lengths - start, 0, stop - start))
        results = DOORS[door](part)
        outputs.append(results["output"])
        state = final_of(results)
    assert_same_bits(np.concatenate(outputs), uncut["output"], "output")
    assert_same_bits(state, final_of(uncut), "final state")


def torch_cell(case):
    import torch

    import elman.torch

    return cell_as_torch(case, torch, elman.torch, tensor, array)


def oneflow_cell(case):
    import oneflow

    import elman.oneflow

    return cell_as_torch(case, oneflow, elman.oneflow, oneflow.tensor, oneflow.Tensor.numpy)


def cell_as_torch(case, library, package, tensor, array):
    cell = cell_of(case, package, getattr(library, case.dtype))
    cell.load_state_dict({k.removesuffix("_l0"): tensor(w) for k, w in case.weights.items()})

    def run(x, state):
        with package.require("kernel"):
            after = cell(tensor(x), each(tensor, state))
        return each(array, after)

    return run


CELL_DOORS = {"numpy": numpy_cell, "torch": torch_cell, "oneflow": oneflow_cell}


@pytest.mark.every_isa
@pytest.mark.parametrize("door", [name for name in CELL_DOORS if name in DOORS])
@given(case=cases(num_layers=1, bidirectional=False, extents=False, proj_size=0))
def test_whole_or_cell_by_cell(door, case):
    """With a batch, and one row at a time without one."""
    case = widened(case) if door == "oneflow" else case
    layer = run_numpy(case)
    step = CELL_DOORS[door](case)

    def at(state, index):
        return each(lambda a: a[index], state)

    state = at(case.state, 0)
    for t, x_t in enumerate(case.x):
        alone = step(x_t[-1], at(state, -1))
        state = step(x_t, state)
        output = parts(state)[0].astype(layer["output"].dtype)
        assert_same_bits(output, layer["output"][t])
        assert_same_bits(alone, at(state, -1))
    assert_same_bits(state, at(final_of(layer), 0))


@every_door
@given(case=cases(steps=(2, 9), num_layers=1, extents=False), cut=st.integers(1, 8))
def test_an_episode_alone_and_after_a_reset(door, case, cut):
    """A sequence cut by a reset gives what its two episodes give, the second from zeros."""
    steps, batch = case.x.shape[:2]
    cut = 1 + (cut - 1) % (steps - 1)
    reset = np.zeros((steps, batch), bool)
    reset[cut] = True
    # What the first episode hands on, and what the second does in reverse, is dropped.
    states = {name: a for name, a in case.arrays().items() if name.endswith(("_0", "_n"))}
    case = replace(case, **{name: np.zeros_like(a) for name, a in states.items()})
    both = DOORS[door](replace(case, reset=reset))
    for episode in (slice(0, cut), slice(cut, steps)):
        alone = DOORS[door](case.steps(episode, case.state))
        for name in ("output", "d_x"):
            assert_same_bits(both[name][episode], alone[name], name)


@pytest.mark.every_isa
@pytest.mark.parametrize("door", [name for name in DOORS if name != "numpy"])
@given(case=cases())
def test_doors_that_share_the_engine_agree(door, case):
    """Outputs and every gradient."""
    case = {"mlx": fit_mlx, "oneflow": widened}.get(door, lambda case: case)(case)
    got, want = DOORS[door](case), run_numpy(case)
    assert got.keys() <= want.keys()
    assert {*by_row(want), "d_weight_ih_l0", "d_weight_hh_l0"} <= got.keys()
    for name, a in got.items():
        # Of a GRU's recurrent bias, MLX has b_hn alone.
        assert_same_bits(a, want[name][-len(a) :] if "bias_hh" in name else want[name], name)


@given(case=cases())
def test_with_or_without_what_backward_needs(case):
    layer = numpy_layer(case)
    output, final = layer(case.x, case.state, case.lengths, case.reset)
    want = run_numpy(case, layer)
    assert_same_bits(output, want["output"])
    assert_same_bits(final, final_of(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_goes_through_as_ieee_says(cell, bad, dtype):
    """From its step on, in its row and nowhere else."""
    case = make(cell, 3, 17, 6, 5, dtype, extents=False)
    clean = run_numpy(case)["output"]
    case.x[2, 3, 1] = bad
    results = run_numpy(case)
    output = results["output"]
    touched = np.zeros(output.shape[:2], bool)
    touched[2:, 3] = True
    assert_same_bits(output[~touched], clean[~touched])
    weight = case.weights["weight_ih_l0"][:, 1]
    if np.isnan(bad):
        assert np.isnan(output[touched]).all()
        for a in parts(final_of(results)):
            assert np.isnan(a[0, 3]).all()
    elif cell == "rnn_tanh":  # saturated
        assert_same_bits(output[2, 3], np.sign(weight * bad).astype(dtype))
    elif cell == "rnn_relu":  # infinite or cut off
        assert_same_bits(output[2, 3], np.where(weight * bad > 0, np.inf, 0).astype(dtype))
    else:  # every gate is saturated
        assert np.isfinite(output[touched]).all()
        for a in parts(final_of(results)):
            assert np.isfinite(a[0, 3]).all()
        assert (np.abs(output[touched]) <= np.abs(case.h_0).max() + 1).all()
