"""The same answer on any number of threads, from several at once, and whatever mode they are in."""

import ctypes
import multiprocessing
import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from doors import CELLS, DOORS, DTYPES, FULL, cases, make, numpy_layer, run_numpy, threads
from hypothesis import given, settings
from reference import assert_all_same_bits
from test_faults import LIMIT, count_threads, in_new_process, only_linux

import elman
from elman import _engine

every_door = pytest.mark.parametrize("door", DOORS)
few = settings(max_examples=settings.default.max_examples // 4)

LARGE = {  # enough arithmetic for eight threads
    "rows divided": ((30, 40), (20, 64), {}),
    "units divided": ((25, 1), (30, 400), {}),
    "few rows": ((120, 17), (20, 64), {}),
    "rows divided, both directions": ((30, 40), (20, 64), {"bidirectional": True}),
    "units divided, both directions": ((15, 2), (9, 401), {"bidirectional": True}),
    "three layers": ((20, 33), (65, 63), {"num_layers": 3}),
}


def large(size, cell="gru", dtype="float32", extents=False, **more):
    (steps, batch), (D, H), options = LARGE[size]
    return make(cell, D, H, steps, batch, dtype, extents=extents, **options, **more)


def assert_same_on_any_number(door, case):
    with threads(1):
        one = DOORS[door](case)
    for n in (2, 3, 8, 8):
        with threads(n):
            assert_all_same_bits(DOORS[door](case), one)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_threads(cell, dtype, size):
    """All gradients too."""
    for extents in (False, True):
        assert_same_on_any_number("numpy", large(size, cell, dtype, extents))


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("dtype", FULL)
def test_any_number_of_threads_with_a_projection(dtype, size):
    """A second product at every step, which reads what other threads wrote."""
    H = LARGE[size][1][1]
    for P in (29, H - 3):
        case = large(size, "lstm", dtype, extents=True, proj_size=P)
        assert_same_on_any_number("numpy", case)


@every_door
@few
@given(
    case=cases(
        steps=(1, 40), batch=(1, 40), D=(3, 65), H=(64, 97, 129, 300), scale=1.0, num_layers=1
    )
)
def test_any_number_of_threads_in_every_door(door, case):
    assert_same_on_any_number(door, case)


def started_threads(size, cell, less):
    """How many a call starts beside this one, where eight are allowed, in a process of its own."""

    def count(pipe):
        before = count_threads()
        elman.set_num_threads(8)
        P = LARGE[size][1][1] - less if less else 0
        run_numpy(large(size, cell, proj_size=P))
        pipe.send(count_threads() - before)

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=count, args=(theirs,))
    process.start()
    process.join(LIMIT)
    return ours.recv()


def count_in_every_case():
    _engine.always_wait(True)
    for size in LARGE:
        for cell, less in (("gru", 0), ("lstm", 0), ("lstm", 3)):
            assert started_threads(size, cell, less) == 7, (size, cell, less)


@only_linux
def test_those_sizes_do_use_threads():
    """Else the tests above would compare one thread with itself."""
    in_new_process(count_in_every_case)


@every_door
@pytest.mark.parametrize("size", ["rows divided", "units divided, both directions"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_run_to_run(cell, door, size):
    case = large(size, cell)
    with threads(3):
        first = DOORS[door](case)
        for _ in range(3):
            assert_all_same_bits(DOORS[door](case), first)


@contextmanager
def switching():
    """Python goes from one of its threads to the next as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(jobs, times):
    """Run every job so many times, each on a thread of its own; returns their results."""
    start = threading.Barrier(len(jobs))
    got = [[] for _ in jobs]

    def work(i):
        start.wait()
        for _ in range(times):
            got[i].append(jobs[i]())

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    with switching():
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LIMIT)
            assert not worker.is_alive(), "the calls wait for one another"
    return got


def assert_same_at_once(jobs, want, times):
    for results, expected in zip(at_once(jobs, times), want, strict=True):
        assert len(results) == times
        for result in results:
            assert_all_same_bits(result, expected)


def copied(results):
    """Results that shared memory with others would be compared with themselves."""
    return {name: a.copy() for name, a in results.items()}


@every_door
def test_several_python_threads_at_once(door):
    """Calls large enough to want the pool's threads, which only one of them can have."""
    sizes = ("rows divided", "units divided", "three layers")
    cells = ("gru", "lstm", "gru")
    calls = [
        large(size, cell, extents=i % 2 == 0)
        for i, (size, cell) in enumerate(zip(sizes, cells, strict=True))
    ]
    want = [copied(DOORS[door](call)) for call in calls]
    with threads(3):
        assert_same_at_once([lambda call=call: DOORS[door](call) for call in calls], want, 3)


def meet_in_one_layer():
    """Calls of one shape meet first where its weights are packed."""
    for cell in CELLS:
        calls = [make(cell, 20, 200, 9, 8, "float32", seed=i, bidirectional=True) for i in range(4)]
        calls = [replace(call, weights=calls[0].weights) for call in calls]
        want = [copied(run_numpy(call)) for call in calls]
        for _ in range(10):
            layer = numpy_layer(calls[0])
            jobs = [lambda call=call, layer=layer: run_numpy(call, layer) for call in calls]
            assert_same_at_once(jobs, want, 2)


def test_several_python_threads_at_once_on_one_layer(monkeypatch):
    """In a process where memory that is freed is overwritten at once, as glibc can."""
    monkeypatch.setenv("MALLOC_PERTURB_", "165")
    in_new_process(meet_in_one_layer)


def subnormal():
    """A case whose values are smaller than a normal number, and that uses several threads."""
    case = make("rnn_relu", 20, 64, 30, 40, "float32", scale=1e-39, bias=False, extents=False)
    tiny = {"d_output": case.d_output * 1e-39, "d_h_n": case.d_h_n * 1e-39}
    return replace(case, **{name: a.astype("float32") for name, a in tiny.items()})


def test_subnormal_numbers_are_kept_where_the_caller_flushes_them():
    """The pool's threads would keep them, and the answer depend on how many there are."""
    torch = pytest.importorskip("torch", reason="PyTorch has the switch")
    case = subnormal()
    want = run_numpy(case)
    assert 0 < np.abs(want["output"]).max() < np.finfo("float32").tiny
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush them")
    try:
        for n in (1, 8):
            with threads(n):
                assert_all_same_bits(run_numpy(case), want)
        # And the switch stays where it was.
        assert torch.tensor(1e-39) * 1 == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(sys.platform != "linux", reason="the modes' numbers are Linux's")
def test_rounding_is_to_nearest_where_the_caller_rounds_otherwise():
    c = ctypes.CDLL(None)
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(os.uname().machine)
    if upward is None:
        pytest.skip("the mode's number on this processor is not known here")
    case = large("rows divided")
    want = run_numpy(case)
    with threads(3):
        assert c.fesetround(upward) == 0
        try:
            got = run_numpy(case)
            assert c.fegetround() == upward
        finally:
            c.fesetround(0)
    assert_all_same_bits(got, want)


def test_a_number_of_threads_beyond_any_machine():
    case = large("few rows")
    want = run_numpy(case)
    for n in (1000, 2**63 - 1):
        elman.set_num_threads(n)
        assert_all_same_bits(run_numpy(case), want)
