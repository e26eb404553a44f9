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


def _complete(given: Sequence[Any], xp: Any) -> Weights:
    """MLX's weights of a direction, of whose recurrent biases there is a GRU's b_hn or none."""
    w_ih, w_hh, *biases = given
    if not biases:
        return Weights(w_ih, w_hh)
    b_ih, *new = biases
    b_hh = xp.zeros_like(b_ih)
    if new:
        b_hh = xp.concatenate([b_hh[w_hh.shape[1] :], *new])
    return Weights(w_ih, w_hh, b_ih, b_hh)


def _incomplete(d: Sequence[Any]) -> list[Any]:
    """The gradients of MLX's weights among those of the complete ones."""
    d_w_ih, d_w_hh, d_b_ih, d_b_hh = d
    return [d_w_ih, d_w_hh, d_b_ih, None if d_b_hh is None else d_b_hh[-d_w_hh.shape[1] :]]


class Function:
    """One layer of one or two directions, as a function of its arrays.

    Those are x (N, L, D), h_0 (directions, N, H), and each direction's weights as MLX's layer has
    them. lengths is (N,), reset (L, N). Nothing is laid out anew before the engine has it, since
    each operation of MLX's is a hand-over to another thread. With `keep`, forward holds on to what
    backward needs, with `recompute` to the states alone; without, backward runs forward once more.
    """

    def __init__(
        self,
        cell: Cell,
        directions: int,
        lengths: mx.array | None,
        reset: mx.array | None,
        keep: bool,
        recompute: bool,
    ) -> None:
        self._cell, self._directions = cell, directions
        self._keep, self._recompute = keep, recompute
        self._lengths, self._reset = lengths, reset

    def scan(self, x: mx.array, h_0: mx.array, *weights: mx.array) -> tuple[mx.array, mx.array]:
        """Output (N, L, directions*H) and h_n (directions, N, H), by the loop on MLX arrays."""
        each = [_complete(w, mx) for w in self._by_direction(weights)]
        extent = {"lengths": self._lengths, "reset": self._reset}
        output, h_n = scan.layer(self._cell, x.swapaxes(0, 1), h_0, each, xp=mx, **extent)
        return output.swapaxes(0, 1), h_n

    def kernel(self, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        """The same by the engine, the gradients too."""
        kept: Kept | None = None

        def forward(*arrays: mx.array) -> list[mx.array]:
            nonlocal kept
            output, h_n, kept = self._forward(arrays, self._keep)
            return [_copy(output.swapaxes(0, 1)), _copy(h_n)]

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
        packed = engine.pack(self._cell, self._complete(weights))
        x, threads = x.swapaxes(0, 1), engine.get_num_threads()
        extent = self._extent()
        return engine.forward(self._cell, packed, x, h_0, extent, threads, keep, self._recompute)

    def _backward(
        self, arrays: Arrays, kept: Kept, d_output: mx.array, d_h_n: mx.array
    ) -> list[mx.array]:
        x, _, *weights = map(np.asarray, arrays)
        complete = self._complete(weights)
        d_x, d_h_0, d_weights = engine.backward(
            engine.pack(self._cell, complete),
            [None if w is None else w.shape for w in complete],
            x.swapaxes(0, 1),
            kept,
            np.asarray(d_output).swapaxes(0, 1),
            np.asarray(d_h_n),
            self._extent(),
            engine.get_num_threads(),
        )
        assert d_x is not None
        gradients = [d_x.swapaxes(0, 1), d_h_0]
        each = len(weights) // self._directions
        for i in range(self._directions):
            gradients += _incomplete((d_weights or [])[4 * i : 4 * i + 4])[:each]
        return [_copy(d) for d in gradients]

    def _by_direction(self, weights: Sequence[Any]) -> list[Sequence[Any]]:
        each = len(weights) // self._directions
        return [weights[i : i + each] for i in range(0, len(weights), each)]

    def _complete(self, weights: Sequence[Any]) -> list[Any]:
        """Four a direction, None for an absent bias."""
        return [w for given in self._by_direction(weights) for w in _complete(given, np)]

    def _extent(self) -> Extent:
        lengths, reset = self._lengths, self._reset
        return Extent(
            None if lengths is None else np.asarray(lengths).astype(np.int64),
            None if reset is None else np.asarray(reset),
        )
