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
from elman.weights.frameworks import APART

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


# Of the recurrent biases MLX's layers have those that cannot join the others.


def _complete(cell: Cell, given: Sequence[Any], xp: Any) -> Weights:
    """MLX's weights of a direction."""
    w_ih, w_hh, *biases = given
    if not biases:
        return Weights(w_ih, w_hh)
    b_ih, *apart = biases
    rows = dict(zip(APART.get(cell.kind, ()), apart, strict=True))
    zeros = xp.zeros_like(b_ih[: len(b_ih) // len(cell.gates)])
    b_hh = xp.concatenate([rows.get(gate, zeros) for gate in cell.gates])
    return Weights(w_ih, w_hh, b_ih, b_hh)


def _incomplete(cell: Cell, d: Weights) -> list[Any]:
    """The gradients of MLX's weights among those of the complete ones."""
    if d.b_ih is None:
        return [d.w_ih, d.w_hh]
    rows = dict(zip(cell.gates, np.split(d.b_hh, len(cell.gates)), strict=True))
    return [d.w_ih, d.w_hh, d.b_ih, *(rows[gate] for gate in APART.get(cell.kind, ()))]


class Function:
    """One layer of one or two directions, as a function of its arrays.

    Those are x (N, L, D), h_0 (directions, N, S), and each direction's weights as MLX's layer has
    them. The results are h at every step (N, L, directions*H), with `whole` c at every step, shaped
    alike, and the final state (directions, N, S). lengths is (N,), reset (L, N). Nothing is laid
    out anew before the engine has it, since each operation of MLX's is a hand-over to another
    thread. With `keep`, forward holds on to what backward needs, with `recompute` to the states
    alone; without, backward runs forward once more.
    """

    def __init__(
        self,
        cell: Cell,
        directions: int,
        lengths: mx.array | None,
        reset: mx.array | None,
        keep: bool,
        recompute: bool,
        whole: bool,
    ) -> None:
        self._cell, self._directions, self._whole = cell, directions, whole
        self._keep, self._recompute = keep, recompute
        self._lengths, self._reset = lengths, reset

    def scan(self, x: mx.array, h_0: mx.array, *weights: mx.array) -> Arrays:
        """The results by the loop on MLX arrays."""
        each = [_complete(self._cell, w, mx) for w in self._by_direction(weights)]
        extent = {"lengths": self._lengths, "reset": self._reset}
        x = x.swapaxes(0, 1)
        output, final = scan.layer(self._cell, x, h_0, each, xp=mx, whole=self._whole, **extent)
        return *self._parts(output.swapaxes(0, 1)), final

    def _parts(self, output: Any) -> list[Any]:
        """H, and c where there is one, of both directions, from every state."""
        if not self._whole:
            return [output]
        N, L, features = output.shape
        states = len(self._cell.states)
        H = features // (states * self._directions)
        each = output.reshape(N, L, self._directions, states, H)
        return [each[:, :, :, i].reshape(N, L, self._directions * H) for i in range(states)]

    def kernel(self, *arrays: mx.array) -> Arrays:
        """The same by the engine, the gradients too."""
        kept: Kept | None = None

        def forward(*arrays: mx.array) -> list[mx.array]:
            nonlocal kept
            results, kept = self._forward(arrays, self._keep)
            return [_copy(a) for a in results]

        def backward(*arrays: mx.array) -> list[mx.array]:
            d, inputs = self._split(arrays)
            return self._backward(inputs, kept or self._forward(inputs, True)[1], d)

        def vjp(arrays: Arrays, d: Arrays, _: Any) -> Any:
            run = self._scan_backward
            if ready(*d, *arrays):
                run = _differentiable(backward, run)
            return run(*d, *arrays)

        function = _differentiable(forward, self.scan)
        function.vjp(vjp)
        return function(*arrays)

    def _split(self, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """The gradients of the results, and what the function is given."""
        results = 3 if self._whole else 2
        return arrays[:results], arrays[results:]

    def _scan_backward(self, *arrays: mx.array) -> Any:
        d, inputs = self._split(arrays)
        return mx.vjp(self.scan, list(inputs), list(d))[1]

    def _forward(self, arrays: Arrays, keep: bool) -> tuple[list[Array], Any]:
        """The results, and what is kept."""
        x, h_0, *weights = map(np.asarray, arrays)
        output, final, kept = engine.forward(
            self._cell,
            engine.pack(self._cell, self._complete(weights)),
            x.swapaxes(0, 1),
            h_0,
            self._extent(),
            engine.get_num_threads(),
            keep,
            self._recompute,
            self._whole,
        )
        return [*self._parts(output.swapaxes(0, 1)), final], kept

    def _backward(self, arrays: Arrays, kept: Kept, d: Arrays) -> list[mx.array]:
        x, _, *weights = map(np.asarray, arrays)
        *d_states, d_final = map(np.asarray, d)
        d_output, *d_c = d_states
        # Absent gradients come as zeros, which would make 0 of a -0.
        if any(d.any() for d in d_c):
            N, L = x.shape[:2]
            each = [
                a.reshape(N, L, self._directions, a.shape[-1] // self._directions) for a in d_states
            ]
            d_output = np.concatenate(each, -1).reshape(N, L, len(each) * d_output.shape[-1])
        complete = self._complete(weights)
        d_x, d_h_0, d_weights = engine.backward(
            engine.pack(self._cell, complete),
            [None if w is None else w.shape for w in complete],
            x.swapaxes(0, 1),
            kept,
            d_output.swapaxes(0, 1),
            d_final,
            self._extent(),
            engine.get_num_threads(),
        )
        assert d_x is not None
        assert d_weights is not None
        gradients = [d_x.swapaxes(0, 1), d_h_0]
        each = len(Weights._fields)
        for i in range(self._directions):
            gradients += _incomplete(self._cell, Weights(*d_weights[each * i : each * (i + 1)]))
        return [_copy(a) for a in gradients]

    def _by_direction(self, weights: Sequence[Any]) -> list[Sequence[Any]]:
        each = len(weights) // self._directions
        return [weights[i : i + each] for i in range(0, len(weights), each)]

    def _complete(self, weights: Sequence[Any]) -> list[Any]:
        """All of each direction, None for absent ones."""
        each = self._by_direction(weights)
        return [w for given in each for w in _complete(self._cell, given, np)]

    def _extent(self) -> Extent:
        lengths, reset = self._lengths, self._reset
        return Extent(
            None if lengths is None else np.asarray(lengths).astype(np.int64),
            None if reset is None else np.asarray(reset),
        )
