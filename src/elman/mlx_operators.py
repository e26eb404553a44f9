"""One layer of one or two directions as a function of MLX arrays, forward and backward.

The engine runs on the arrays' own memory as soon as a call is made, and MLX takes what it gave for
the results of an operation whose derivatives are known: the first one is the engine's, those of
other kinds and orders come from the loop of ``elman.scan``, which computes the same.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# (parts of MLX are not typed)

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from elman import engine, scan
from elman.engine import Array, Extent, Kept
from elman.spec import Cell, Weights

Arrays = Sequence[mx.array]


def ready(*arrays: mx.array | None) -> bool:
    """Compute the arrays, unless a transformation has yet to bring their values."""
    try:
        mx.eval([a for a in arrays if a is not None])
    except ValueError:
        return False
    return True


def _copy(a: Array) -> mx.array:
    return mx.array(a, mx.float64 if a.dtype == np.float64 else mx.float32)  # float32 unless told


def _differentiable(run: Callable[..., Any], reference: Callable[..., Any]) -> Any:
    """`run`, which MLX cannot see into, differentiated as `reference`, which computes the same."""

    def jvp(arrays: Arrays, tangents: Sequence[mx.array | None]) -> Any:
        pairs = zip(arrays, tangents, strict=True)
        full = [mx.zeros_like(a) if t is None else t for a, t in pairs]
        return mx.jvp(reference, list(arrays), full)[1]

    function = mx.custom_function(run)
    function.vjp(lambda arrays, d, _: mx.vjp(reference, list(arrays), list(d))[1])
    function.jvp(jvp)
    return function


class Function:
    """One layer of one or two directions, as a function of its arrays.

    Those are x (L, N, D), h_0 (directions, N, H), and two or four weights a direction. lengths is
    (N,), reset (L, N). With `keep`, forward holds on to what backward needs; without, backward runs
    forward once more.
    """

    def __init__(
        self,
        cell: Cell,
        directions: int,
        lengths: mx.array | None,
        reset: mx.array | None,
        keep: bool,
    ) -> None:
        self._cell, self._directions, self._keep = cell, directions, keep
        self._lengths, self._reset = lengths, reset

    def scan(self, x: mx.array, h_0: mx.array, *weights: mx.array) -> tuple[mx.array, mx.array]:
        """Output (L, N, directions*H) and h_n (directions, N, H), by the loop on MLX arrays."""
        each = self._by_direction(weights)
        extent = {"lengths": self._lengths, "reset": self._reset}
        return scan.layer(self._cell, x, h_0, each, xp=mx, **extent)

    def kernel(self, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        """The same by the engine, the gradients too."""
        kept: Kept | None = None

        def forward(*arrays: mx.array) -> list[mx.array]:
            nonlocal kept
            output, h_n, kept = self._forward(arrays, self._keep)
            return [_copy(output), _copy(h_n)]

        def backward(d_output: mx.array, d_h_n: mx.array, *arrays: mx.array) -> list[mx.array]:
            return self._backward(arrays, kept or self._forward(arrays, True)[2], d_output, d_h_n)

        def vjp(arrays: Arrays, d: Arrays, _: Any) -> Any:
            run = self._scan_backward
            if ready(*d, *arrays):
                run = _differentiable(backward, run)
            return run(*d, *arrays)

        function = _differentiable(forward, self.scan)
        function.vjp(vjp)
        return function(*arrays)

    def _scan_backward(self, d_output: mx.array, d_h_n: mx.array, *arrays: mx.array) -> Any:
        return mx.vjp(self.scan, list(arrays), [d_output, d_h_n])[1]

    def _forward(self, arrays: Arrays, keep: bool) -> Any:
        x, h_0, *weights = map(np.asarray, arrays)
        packed = engine.pack(self._cell, self._flat(weights))
        return engine.forward(
            self._cell, packed, x, h_0, self._extent(), engine.get_num_threads(), keep
        )

    def _backward(
        self, arrays: Arrays, kept: Kept, d_output: mx.array, d_h_n: mx.array
    ) -> list[mx.array]:
        x, _, *weights = map(np.asarray, arrays)
        flat = self._flat(weights)
        d_x, d_h_0, d_weights = engine.backward(
            engine.pack(self._cell, flat),
            [None if w is None else w.shape for w in flat],
            x,
            kept,
            np.asarray(d_output),
            np.asarray(d_h_n),
            self._extent(),
            engine.get_num_threads(),
        )
        return [_copy(d) for d in (d_x, d_h_0, *(d_weights or ())) if d is not None]

    def _by_direction(self, weights: Sequence[Any]) -> list[Weights]:
        each = len(weights) // self._directions
        return [Weights(*weights[i : i + each]) for i in range(0, len(weights), each)]

    def _flat(self, weights: Sequence[Any]) -> list[Any]:
        """Four a direction, None for an absent bias."""
        return [w for direction in self._by_direction(weights) for w in direction]

    def _extent(self) -> Extent:
        lengths, reset = self._lengths, self._reset
        return Extent(
            None if lengths is None else np.asarray(lengths).astype(np.int64),
            None if reset is None else np.asarray(reset),
        )
