"""The MLX door: RNN and GRU for ``mlx.nn``'s, and ``accelerate``.

The layers derive from ``mlx.nn.RNN`` and ``mlx.nn.GRU`` and have their constructors, parameters and
results. Layers, directions, dropout, ``lengths=``, ``reset=`` and the final state come on top.

A call takes one of three paths; :data:`paths` counts which, and :func:`require` insists on one:

- "kernel": the engine, for float32 and float64;
- "scan": the loop of ``elman.scan`` on MLX arrays, where values are not there yet (inside
  ``mx.compile``, ``mx.vmap`` and ``mx.export_function``) or the engine does not serve a call that
  MLX's layer does not take either;
- "mlx": MLX's own layer, for other dtypes and nonlinearities.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# (parts of MLX are not typed)

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from elman import engine, scan, stack
from elman.engine import Extent, Kept
from elman.paths import Paths
from elman.spec import CELLS, Cell, Shape, Spec, Weights, check_lengths, check_reset

__all__ = ["GRU", "RNN", "accelerate", "paths", "require"]

_paths = Paths("kernel", "scan", "mlx")
paths, require = _paths.counts, _paths.require

Arrays = Sequence[mx.array]


def _ready(*arrays: mx.array | None) -> bool:
    """Compute the arrays, unless they stand for values that a transformation will bring later."""
    try:
        mx.eval([a for a in arrays if a is not None])
    except ValueError:
        return False
    return True


def _array(a: mx.array | None) -> Any:
    """The same memory, for NumPy."""
    return None if a is None else np.asarray(a)


def _differentiable(run: Callable[..., Any], reference: Callable[..., Any]) -> Any:
    """`run`, which MLX cannot see into, differentiated as `reference`, which computes the same."""

    def jvp(primals: Arrays, tangents: Sequence[mx.array | None]) -> Any:
        given = zip(primals, tangents, strict=True)
        full = [mx.zeros_like(p) if t is None else t for p, t in given]
        return mx.jvp(reference, list(primals), full)[1]

    function = mx.custom_function(run)
    function.vjp(lambda primals, d, _: mx.vjp(reference, list(primals), list(d))[1])
    function.jvp(jvp)
    return function


@dataclass(frozen=True)
class _Function:
    """One layer of one or two directions as a function of its arrays.

    The arrays are x (L, N, D), h_0 (directions, N, H), and each direction's two or four weights.
    lengths is (N,), reset (L, N). With `keep`, forward holds on to what backward needs; without it,
    backward runs forward once more.
    """

    cell: Cell
    directions: int
    lengths: mx.array | None
    reset: mx.array | None
    keep: bool

    def scan(self, x: mx.array, h_0: mx.array, *weights: mx.array) -> tuple[mx.array, mx.array]:
        """Output (L, N, directions*H) and h_n (directions, N, H), by the loop on MLX arrays."""
        by_direction = [Weights(*each) for each in self._by_direction(weights)]
        extent = {"lengths": self.lengths, "reset": self.reset}
        return scan.layer(self.cell, x, h_0, by_direction, xp=mx, **extent)

    def scan_backward(self, d_output: mx.array, d_h_n: mx.array, *arrays: mx.array) -> Any:
        """The gradients of the arrays, through that loop."""
        return mx.vjp(self.scan, list(arrays), [d_output, d_h_n])[1]

    def kernel(self, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        """What `scan` gives, by the engine, and differentiated by it."""
        kept: Kept | None = None

        def forward(*arrays: mx.array) -> tuple[mx.array, mx.array]:
            nonlocal kept
            output, h_n, kept = self._forward(arrays, self.keep)
            return mx.array(output), mx.array(h_n)

        def backward(d_output: mx.array, d_h_n: mx.array, *arrays: mx.array) -> list[mx.array]:
            return self._backward(arrays, kept or self._forward(arrays, True)[2], d_output, d_h_n)

        def vjp(arrays: Arrays, d: Arrays, _: Any) -> Any:
            known = _ready(*d, *arrays)
            run = _differentiable(backward, self.scan_backward) if known else self.scan_backward
            return run(*d, *arrays)

        function = _differentiable(forward, self.scan)
        function.vjp(vjp)
        return function(*arrays)

    def _forward(self, arrays: Arrays, keep: bool) -> Any:
        x, h_0, *weights = map(_array, arrays)
        packed = self._pack(weights)
        threads = engine.get_num_threads()
        return engine.forward(self.cell, packed, x, h_0, self._extent(), threads, keep)

    def _backward(
        self, arrays: Arrays, kept: Kept, d_output: mx.array, d_h_n: mx.array
    ) -> list[mx.array]:
        x, _, *weights = map(_array, arrays)
        flat = [w for each in self._by_direction(weights) for w in each]
        d_x, d_h_0, d_weights = engine.backward(
            self._pack(weights),
            [None if w is None else w.shape for w in flat],
            x,
            kept,
            _array(d_output),
            _array(d_h_n),
            self._extent(),
            engine.get_num_threads(),
        )
        return [mx.array(d) for d in (d_x, d_h_0, *(d_weights or [])) if d is not None]

    def _by_direction(self, weights: Sequence[Any]) -> list[Weights]:
        each = len(weights) // self.directions
        starts = range(0, len(weights), each)
        return [Weights(*weights[start : start + each]) for start in starts]

    def _pack(self, weights: Sequence[Any]) -> Any:
        return engine.pack(self.cell, [w for each in self._by_direction(weights) for w in each])

    def _extent(self) -> Extent:
        lengths = None if self.lengths is None else _array(self.lengths).astype(np.int64)
        return Extent(lengths, _array(self.reset))
