"""The CPU engine: one layer of one or two directions, forward and backward.

Packages come through here, but for calls that the extension does in one. It reads NumPy arrays, and
tensors that their framework lends by DLPack's exchange functions, in place, whatever their strides,
as long as the features of a row lie side by side; and gives NumPy arrays.

A state is one vector a row: h, or an LSTM's [h | c], of S features. The letters are those of
``spec.Spec``.

Weights may be in half precision. Then x and output, and their gradients, may be too, but all that
is computed is float32, and so are the state and its gradient.
"""

# pyright: reportUnknownMemberType=false
# (arrays of either dtype cross into the extension)

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from elman import _engine
from elman.spec import Cell, Shape

Array = npt.NDArray[Any]
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
isa = _engine.isa()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_threads = _processors()
_engine.set_threads_of_xla_calls(_threads)


def set_num_threads(n: int) -> None:
    """Let each call of the NumPy and the JAX package use up to n threads; small calls use fewer.

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
    _engine.set_threads_of_xla_calls(n)


def get_num_threads() -> int:
    """The number of threads that a call of the NumPy or the JAX package may use."""
    return _threads


@contextmanager
def memory_for(title: str, what: str) -> Generator[None]:
    """Where memory is not to be had, the error says for what."""
    try:
        yield
    except MemoryError as e:
        raise MemoryError(f"{title}: not enough memory for {what}") from e


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
    states: Array  # (directions, N + rows, S): before the first step, and after each


def pack(cell: Cell, weights: Iterable[Any]) -> _engine.Weights:
    """Weights for the calls below: a ``spec.Weights`` of each direction, one behind the other.

    They are arrays or tensors of float32, float64, float16 or bfloat16, or DLPack's capsules of
    such. They must not change while they are in use.
    """
    known = [_packable(w) if type(w) is np.ndarray else w for w in weights]
    return _engine.Weights(cell.name, known)


def _packable(weight: Array) -> Array:
    """The weight as the extension knows it: of bfloat16 its bits, as uint16."""
    a = weight if weight.flags.aligned else np.array(weight)
    return a.view(np.uint16) if a.dtype.itemsize == 2 and a.dtype != np.float16 else a


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the state, and of all arithmetic, for weights of a type."""
    return _FLOAT32 if dtype.itemsize == 2 else dtype


def _readable(a: Any) -> Any:
    """The array as the extension reads it: half precision as float32, bytes between values gone."""
    if type(a) is not np.ndarray:
        return a
    if a.dtype.itemsize == 2:
        return a.astype(np.float32, order="C")
    return a if a.flags.aligned else np.array(a, order="C")


def _empty(shape: Shape, is_float64: bool) -> Array:
    """A new array for a result."""
    if math.prod(shape) < _engine.LARGE:
        return np.empty(shape, _FLOAT64 if is_float64 else _FLOAT32)
    return cast(Array, _engine.empty(shape, is_float64))


def forward(
    cell: Cell,
    weights: _engine.Weights,
    x: Any,
    h_0: Any,
    extent: Extent,
    threads: int,
    keep: bool = False,
    recompute: bool = False,
    whole: bool = False,
    empty: Callable[[Shape, bool], Any] = _empty,
) -> tuple[Array, Array, Kept | None]:
    """Run a layer.

    x is (L, N, D), or (rows, D) packed; h_0 is (directions, N, S), or None for zeros. Returns
    output (L, N, directions*P) or (rows, directions*P), h_n (directions, N, S), and what backward
    needs if `keep`: of the gates nothing with `recompute`. With `whole` output holds every state
    (L, N, directions*S). ``empty(shape, is_float64)`` gives the memory of both. Raises ValueError
    for lengths outside 0..L.
    """
    directions, H, P = weights.directions, weights.hidden_size, weights.output_size
    S = cell.state_size(H, P)
    batch = x.shape[1] if extent.batch_sizes is None else int(extent.batch_sizes[0])
    wide = weights.is_float64
    features = directions * (S if whole else P)
    output = empty((*x.shape[:-1], features), wide)
    h_n = empty((directions, batch, S), wide)
    kept = None
    if keep:
        rows = math.prod(x.shape[:-1])
        gates = cell.kept * H
        kept = Kept(
            _empty((directions, rows, gates), wide) if gates and not recompute else None,
            _empty((directions, batch + rows, S), wide),
        )
    _engine.forward(
        weights,
        _readable(x),
        output,
        h_n,
        _readable(h_0),
        *extent,
        *(kept or (None, None)),
        threads,
    )
    return output.astype(x.dtype) if x.dtype.itemsize == 2 else output, h_n, kept


def backward(
    weights: _engine.Weights,
    shapes: Sequence[Shape | None],
    x: Any,
    kept: Kept,
    d_output: Any,
    d_h_n: Any,
    extent: Extent,
    threads: int,
    need_x: bool = True,
    need_weights: bool = True,
    empty: Callable[[Shape, bool], Any] = _empty,
) -> tuple[Array | None, Array, list[Array | None] | None]:
    """Gradients of sum(output * d_output) + sum(h_n * d_h_n), either of which may be None.

    Output may hold every state, as of forward with `whole`.
    `shapes` are the weights', in the order of `pack`, None for an absent one. Returns d_x, d_h_0
    and the weights' gradients, in their order, in the memory that `empty` gives; what is absent or
    not needed is None.
    """
    directions, _, S = kept.states.shape
    batch = x.shape[1] if extent.batch_sizes is None else int(extent.batch_sizes[0])
    wide = weights.is_float64
    d_x = empty((directions, *x.shape), wide) if need_x else None
    d_h_0 = empty((directions, batch, S), wide)
    d_weights = None
    if need_weights:
        d_weights = [None if shape is None else empty(shape, wide) for shape in shapes]
    _engine.backward(
        weights,
        _readable(x),
        *kept,
        _readable(d_output),
        _readable(d_h_n),
        d_x,
        d_h_0,
        d_weights,
        *extent,
        threads,
    )
    if d_x is not None:
        with np.errstate(all="ignore"):  # what is not finite goes through
            d_x = d_x[0] if directions == 1 else d_x[0] + d_x[1]
            if x.dtype.itemsize == 2:
                d_x = d_x.astype(x.dtype)
    if d_weights is not None and x.dtype.itemsize == 2:
        d_weights = [None if d is None else d.astype(x.dtype) for d in d_weights]
    return d_x, d_h_0, d_weights
