"""The CPU engine on NumPy arrays: one layer of one or two directions, forward and backward.

Every door that computes on the CPU comes through here. Arrays are read in place, whatever their
strides, as long as the features of a row lie side by side.

Weights may be in half precision. Then x and output, and their gradients, may be too, but all that
is computed is float32, and so are the state and its gradient.
"""

# pyright: reportUnknownMemberType=false
# (arrays of either dtype cross into the extension)

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from elman import _engine
from elman.spec import Cell, Shape

Array = npt.NDArray[Any]
isa = _engine.isa()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_threads = _processors()


def set_num_threads(n: int) -> None:
    """Let each call of the NumPy door use up to n threads; small calls use fewer.

    The answer does not depend on it. The default is the number of processors.

    >>> import elman
    >>> elman.set_num_threads(1)
    >>> elman.get_num_threads()
    1
    """
    global _threads
    if isinstance(n, bool) or not isinstance(n, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"set_num_threads: expected an int, got {n!r}")
    if n < 1:
        raise ValueError(f"set_num_threads: expected at least 1, got {n}")
    if n >= 2**63:
        raise ValueError("set_num_threads: expected fewer than 2**63")
    _threads = n


def get_num_threads() -> int:
    """The number of threads that a call of the NumPy door may use."""
    return _threads


class Extent(NamedTuple):
    """How far rows run, and where they start afresh.

    lengths (N,) int64 and reset (L, N) bool for padded input, or batch_sizes (L,) int64 for packed
    input: row n runs while batch_sizes[t] > n.
    """

    lengths: Array | None = None
    reset: Array | None = None
    batch_sizes: Array | None = None


class Kept(NamedTuple):
    """What forward keeps for backward, rows = L*N or those of packed input."""

    gates: Array | None  # (directions, rows, cell.kept * H); None: backward computes them again
    states: Array  # (directions, rows, H): the state before each step


def pack(cell: Cell, weights: Sequence[Any]) -> _engine.Weights:
    """Weights for the calls below: w_ih, w_hh, b_ih, b_hh of each direction, None for no bias.

    They are arrays of float32, float64, float16 or bfloat16 (or its bits, as uint16), or DLPack's
    capsules of contiguous ones. They must not change while they are in use.
    """
    return _engine.Weights(cell.name, [_contiguous(w) for w in weights])


def _contiguous(weight: Any) -> Any:
    if not isinstance(weight, np.ndarray):
        return weight
    a: Array = np.ascontiguousarray(cast(Array, weight))
    if not a.flags.aligned:
        a = np.array(a)
    return a.view(np.uint16) if a.dtype.itemsize == 2 and a.dtype != np.float16 else a


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the state, and of all arithmetic, for weights of a type."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def rows_together(a: Array) -> Array:
    """The array, copied only if the last axis does not lie side by side, at an address for it.

    Half precision becomes float32.
    """
    if a.dtype.itemsize == 2:
        return a.astype(np.float32, order="C")
    if a.flags.aligned and (a.flags.c_contiguous or a.strides[-1] == a.itemsize):
        return a
    return np.array(a, order="C")


def forward(
    cell: Cell,
    weights: _engine.Weights,
    x: Array,
    h_0: Array | None,
    extent: Extent,
    threads: int,
    keep: bool = False,
    recompute: bool = False,
) -> tuple[Array, Array, Kept | None]:
    """Run a layer.

    x is (L, N, D), or (rows, D) packed; h_0 is (directions, N, H), or None for zeros. Returns
    output (L, N, directions*H) or (rows, directions*H), h_n (directions, N, H), and what backward
    needs if `keep`: of the gates nothing with `recompute`. Raises ValueError for lengths outside
    0..L.
    """
    directions, H = weights.directions, weights.hidden_size
    batch = x.shape[1] if extent.batch_sizes is None else int(extent.batch_sizes[0])
    dtype = computed_in(x.dtype)
    output = np.empty((*x.shape[:-1], directions * H), dtype)
    h_n = np.empty((directions, batch, H), dtype)
    kept = None
    if keep:
        rows = output.size // (directions * H)
        kept = Kept(
            None if recompute else np.empty((directions, rows, cell.kept * H), dtype),
            np.empty((directions, rows, H), dtype),
        )
    _engine.forward(
        weights,
        rows_together(x),
        output,
        h_n,
        None if h_0 is None else rows_together(h_0),
        *extent,
        *(kept or (None, None)),
        threads,
    )
    return output if dtype == x.dtype else output.astype(x.dtype), h_n, kept


def backward(
    weights: _engine.Weights,
    shapes: Sequence[Shape | None],
    x: Array,
    kept: Kept,
    d_output: Array | None,
    d_h_n: Array | None,
    extent: Extent,
    threads: int,
    need_x: bool = True,
    need_weights: bool = True,
) -> tuple[Array | None, Array, list[Array | None] | None]:
    """Gradients of sum(output * d_output) + sum(h_n * d_h_n), either of which may be None.

    `shapes` are the weights', four a direction, None for an absent bias. Returns d_x, d_h_0 and the
    weights' gradients, in their order; what is absent or not needed is None.
    """
    directions, _, H = kept.states.shape
    batch = x.shape[1] if extent.batch_sizes is None else int(extent.batch_sizes[0])
    dtype = computed_in(x.dtype)
    d_x = np.empty((directions, *x.shape), dtype) if need_x else None
    d_h_0 = np.empty((directions, batch, H), dtype)
    d_weights = None
    if need_weights:
        d_weights = [None if shape is None else np.empty(shape, dtype) for shape in shapes]
    _engine.backward(
        weights,
        rows_together(x),
        *kept,
        None if d_output is None else rows_together(d_output),
        None if d_h_n is None else rows_together(d_h_n),
        d_x,
        d_h_0,
        d_weights,
        *extent,
        threads,
    )
    if d_x is not None:
        with np.errstate(all="ignore"):  # what is not finite goes through
            d_x = d_x[0] if directions == 1 else d_x[0] + d_x[1]
            d_x = d_x.astype(x.dtype, copy=False)
    if d_weights is not None and dtype != x.dtype:
        d_weights = [None if d is None else d.astype(x.dtype) for d in d_weights]
    return d_x, d_h_0, d_weights
