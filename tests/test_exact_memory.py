"""The same answer wherever arrays lie and however they are laid out, and nothing read past them."""

import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doors import CELLS, DOORS, DTYPES, FULL, cases, make, numpy_layer, run_numpy
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_all_same_bits

from elman import engine

every_door = pytest.mark.parametrize("door", DOORS)


def filled(a, view):
    view[...] = a
    return view


def at(offset):
    """At so many bytes past a cache line's start; of other than whole values too."""

    def change(a):
        memory = np.empty(a.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        return filled(a, memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape))

    return change


def every_other(a):
    """In every axis, between values that are not to be read."""
    wide = np.full([2 * n for n in a.shape], True if a.dtype == bool else -1, a.dtype)
    if a.dtype.kind == "f":
        wide.fill(np.nan)
    return filled(a, wide[tuple(slice(None, None, 2) for _ in a.shape)])


def backward(axis):
    def change(a):
        return np.flip(np.flip(a, axis).copy(), axis) if a.ndim > axis else a

    return change


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def overlapping(a):
    """Each step one row further on in one memory, so that steps share rows."""
    if a.ndim < 2:
        return a
    rows = np.concatenate([a[0], a[:, -1]])
    row = rows.strides[0]
    return np.lib.stride_tricks.as_strided(rows, a.shape, (row, row, *rows.strides[1:]))


LAYOUTS = {
    "anywhere": st.sampled_from([4, 8, 20, 32, 60]).map(at),
    "not at a whole value": st.sampled_from([1, 2, 3, 7, 33]).map(at),
    "every other": st.just(every_other),
    "backward": st.sampled_from([0, 1, 2]).map(backward),
    "columns together": st.just(np.asfortranarray),
    "batch first": st.just(lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1) if a.ndim > 1 else a),
    "read only": st.just(read_only),
}


@every_door
@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data(), case=cases(num_layers=1))
def test_however_arrays_are_laid_out(door, layout, data, case):
    want = DOORS[door](case)
    moved = case.laid_out(data.draw(LAYOUTS[layout]))
    before = {name: a.copy() for name, a in vars(moved).items() if isinstance(a, np.ndarray)}
    assert_all_same_bits(DOORS[door](moved), want)
    assert_all_same_bits({name: getattr(moved, name) for name in before}, before)  # not written


@every_door
@pytest.mark.parametrize("change", [overlapping, lambda a: np.broadcast_to(a[:1], a.shape)])
@given(case=cases(steps=(2, 6), num_layers=1))
def test_arrays_whose_parts_share_memory(door, change, case):
    shared = replace(case, x=change(case.x), d_output=change(case.d_output))
    apart = replace(case, x=shared.x.copy(), d_output=shared.d_output.copy())
    assert_all_same_bits(DOORS[door](shared), DOORS[door](apart))


@given(case=cases(steps=(2, 6), dtypes=FULL, num_layers=1, bidirectional=False))
def test_arguments_that_are_one_memory(case):
    """Parts of x, some of them the same."""
    H = case.spec.hidden_size
    if case.spec.input_size < H:
        case = make(case.spec.cell.name, H, H, *case.x.shape[:2], case.dtype)
    states = {name: a for name, a in case.arrays().items() if name.endswith(("_0", "_n"))}
    shared = {
        name: case.x[i % 2, None, :, : a.shape[-1]] for i, (name, a) in enumerate(states.items())
    }
    case = replace(case, d_output=case.x[:, :, : case.spec.output_size], **shared)
    apart = {name: getattr(case, name).copy() for name in ("d_output", *shared)}
    assert_all_same_bits(run_numpy(case), run_numpy(replace(case, **apart)))


def guarded(shape, dtype=np.float64):
    """An array that ends where memory that must not be touched begins."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = size // mmap.PAGESIZE + 1
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    bytes_ = np.frombuffer(memory, np.uint8)
    guard = bytes_.ctypes.data + pages * mmap.PAGESIZE
    assert mprotect(guard, mmap.PAGESIZE, 0) == 0
    end = pages * mmap.PAGESIZE
    return bytes_[end - size : end].view(dtype).reshape(shape)


def mprotect(*arguments):
    import ctypes

    c = ctypes.CDLL(None, use_errno=True)
    return c.mprotect(*map(ctypes.c_size_t, arguments[:2]), arguments[2])


class GuardedNumPy:
    """NumPy, but for `empty`, whose arrays end at memory that must not be touched."""

    def __getattr__(self, name):
        return getattr(np, name)

    empty = staticmethod(guarded)


def run_at_the_edge(case):
    """Every array of the call, given or taken, at such an edge."""
    case = case.laid_out(lambda a: filled(a, guarded(a.shape, a.dtype)))
    weights = {k: filled(w, guarded(w.shape, w.dtype)) for k, w in case.weights.items()}
    layer = numpy_layer(case)
    layer._weights = weights
    layer._pack()
    engine.np = GuardedNumPy()
    try:
        return run_numpy(case, layer)
    finally:
        engine.np = np


SIZES = [(1, 1), (3, 5), (8, 15), (9, 17), (257, 31), (5, 64)]


def edge_cases():
    for cell in CELLS:
        for dtype in DTYPES:
            for D, H in SIZES:
                for batch, options in ((1, {}), (7, {"bidirectional": True})):
                    yield make(cell, D, H, 3, batch, dtype, **options)
                    if cell == "lstm" and H > 1:
                        yield make(cell, D, H, 3, batch, dtype, proj_size=(H + 1) // 2, **options)


@pytest.mark.skipif(os.name != "posix", reason="memory is protected as POSIX has it")
@pytest.mark.parametrize("isa", ["", "portable", "avx2", "avx512"])
def test_nothing_past_an_array_is_touched(isa):
    """In a process of its own, which would end by a signal."""
    environment = os.environ | ({"ELMAN_ISA": isa} if isa else {})
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    if "ImportError: ELMAN_ISA" in done.stderr:
        assert isa != "portable"
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr or f"ended by signal {-done.returncode}"
    assert done.stdout == f"{len(list(edge_cases()))} cases\n"


def main():
    count = 0
    for count, case in enumerate(edge_cases(), 1):  # noqa: B007
        assert_all_same_bits(run_at_the_edge(case), run_numpy(case))
    print(count, "cases")


if __name__ == "__main__":
    main()
