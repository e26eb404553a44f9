"""One layer of one or two directions as a function of MLX arrays, forward and backward.

The engine runs on the arrays' own memory as soon as a call is made, and MLX takes what it gave for
the results of an operation whose derivatives are known: the first one is the engine's, those of
other kinds and orders come from the loop of ``elman.scan``, which computes the same.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# (parts of MLX are not typed)

from collections.abc import Callable, Sequence
from functools import cache
from threading import current_thread, main_thread
from typing import Any

import mlx.core as mx
import numpy as np

from elman import engine, scan
from elman.engine import Array, Extent, Kept
from elman.spec import Cell, Weights
from elman.weights.frameworks import APART

Arrays = Sequence[mx.array]


def ready(*arrays: Any) -> bool:
    """Compute arrays and lists of such, unless a transformation has yet to bring their values."""
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def retained(*arrays: Any) -> bool:
    """The same within a transformation, where the arrays must stay parts of what is differentiated.

    MLX forgets how an array came about when it computes it, but for those that it traces; and an
    inner gradient ends that for all it meets. In a vjp MLX forgets nothing.
    """
    _wanted[:] = arrays
    try:
        mx.vjp(_in_vjp, [_zero], [_zero])
    except ValueError:
        return False
    finally:
        _wanted.clear()
    return True


_zero = mx.array(0.0)
_wanted: list[Any] = []  # by the main thread, which alone knows of transformations
_in_vjp = mx.custom_function(lambda a: a)
_in_vjp.vjp(lambda _, d, __: (mx.eval(_wanted), d)[1])


def transformed() -> bool | None:
    """Whether a transformation of MLX's is under way, so that the results may be differentiated.

    MLX does not tell. But within a transformation a compiled function runs as it stands if it is
    given a tracer, and is `ready`; elsewhere it gives what the stand-in was that it was compiled
    with. What a thread compiled MLX frees when the thread ends, and the process dies if Python ends
    at the same moment: of threads other than the main one it is not known, None.
    """
    tracer = _tracer() if current_thread() is main_thread() else None
    return None if tracer is None else _is_ready(tracer)


@mx.compile
def _is_ready(a: mx.array) -> Any:
    return ready(a)


@cache
def _tracer() -> mx.array | None:
    """An array that no transformation returned: it stays a tracer. None if nothing tells by it."""
    made: list[mx.array] = []
    told: list[bool] = []

    def function(a: mx.array) -> mx.array:
        made.append(a + 1)
        mx.eval(made)
        told.append(_is_ready(made[0]))
        return a

    mx.vjp(function, [_zero], [_zero])
    return made[0] if told[0] else None


def copied(a: Array) -> mx.array:
    """An array of MLX's, of the same type: float32 unless told. Its buffer is read soonest."""
    buffer: Any = a.data
    return mx.array(buffer, mx.float64 if a.dtype == np.float64 else mx.float32)


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
    """MLX's weights of a direction, arrays of the library xp."""
    w_ih, w_hh, *biases = given
    if not biases:
        return Weights(w_ih, w_hh)
    b_ih, *apart = biases
    if not apart:
        return Weights(w_ih, w_hh, b_ih, xp.zeros(b_ih.shape, b_ih.dtype))
    rows = dict(zip(APART[cell.kind], apart, strict=True))
    zeros = xp.zeros(apart[0].shape, b_ih.dtype)
    b_hh = xp.concatenate([rows.get(gate, zeros) for gate in cell.gates])
    return Weights(w_ih, w_hh, b_ih, b_hh)


def _incomplete(cell: Cell, d: Weights) -> list[Any]:
    """The gradients of MLX's weights among those of the complete ones."""
    if d.b_ih is None:
        return [d.w_ih, d.w_hh]
    H = len(d.b_hh) // len(cell.gates)
    starts = [H * cell.gates.index(gate) for gate in APART.get(cell.kind, ())]
    return [d.w_ih, d.w_hh, d.b_ih, *(d.b_hh[i : i + H] for i in starts)]


def run(
    cell: Cell,
    x: Array,
    h_0: Array,
    weights: Sequence[Sequence[Array]],
    extent: Extent,
    keep: bool = False,
    recompute: bool = False,
    whole: bool = False,
) -> tuple[list[Array], Array, Kept | None]:
    """One layer by the engine, on NumPy's arrays as they come from MLX's.

    x (N, L, D), h_0 (directions, N, S), each direction's weights as MLX's layer has them. Returns
    h, with `whole` c too, at every step (N, L, directions*H), the final state (directions, N, S),
    and what backward needs if `keep`.
    """
    output, final, kept = engine.forward(
        cell,
        engine.pack(cell, [w for each in weights for w in _complete(cell, each, np)]),
        x.swapaxes(0, 1),
        h_0,
        extent,
        engine.get_num_threads(),
        keep,
        recompute,
        whole,
    )
    return _every(cell, output.swapaxes(0, 1), len(weights), whole), final, kept


def _every(cell: Cell, output: Any, directions: int, whole: bool) -> list[Any]:
    """H, and c where there is one, of both directions, from every state."""
    if not whole:
        return [output]
    N, L, features = output.shape
    states = len(cell.states)
    H = features // (states * directions)
    each = output.reshape(N, L, directions, states, H)
    return [each[:, :, :, i].reshape(N, L, directions * H) for i in range(states)]


def zeros(xp: Any, cell: Cell, x: Any, weights: Sequence[Sequence[Any]]) -> Any:
    """The states that nobody gave, (directions, N, S)."""
    S = len(cell.states) * weights[0][1].shape[1]
    return xp.zeros((len(weights), x.shape[0], S), x.dtype)


def as_extent(lengths: mx.array | None, reset: mx.array | None) -> Extent:
    """Lengths (N,) and reset (L, N) as the engine takes them."""
    if lengths is None and reset is None:
        return _WHOLE
    return Extent(
        None if lengths is None else np.asarray(lengths).astype(np.int64),
        None if reset is None else np.asarray(reset),
    )


_WHOLE = Extent()


class Function:
    """One layer of one or two directions, as a function of MLX's arrays.

    Those are x (N, L, D), where they are `given` the states h_0 (directions, N, S), zeros
    otherwise, and each direction's weights as MLX's layer has them. The results are h at every step
    (N, L, directions*H), with `whole` c at every step, shaped alike, and with `final` the final
    state (directions, N, S). lengths is (N,), reset (L, N). Nothing is laid out anew before the
    engine has it, and there is no argument or result that nobody has a use for, since each
    operation of MLX's is a hand-over to another thread. With `keep`, forward holds on to what
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
        given: bool,
        whole: bool,
        final: bool,
    ) -> None:
        self._cell, self._directions = cell, directions
        self._lengths, self._reset = lengths, reset
        self._keep, self._recompute = keep, recompute
        self._given, self._whole, self._final = given, whole, final

    def scan(self, *arrays: mx.array) -> list[mx.array]:
        """The results by the loop on MLX arrays."""
        x, h_0, weights = self._parts(arrays, mx)
        each = [_complete(self._cell, w, mx) for w in weights]
        extent = {"lengths": self._lengths, "reset": self._reset}
        x = x.swapaxes(0, 1)
        output, final = scan.layer(self._cell, x, h_0, each, xp=mx, whole=self._whole, **extent)
        every = _every(self._cell, output.swapaxes(0, 1), self._directions, self._whole)
        return [*every, final] if self._final else every

    def kernel(self, *arrays: mx.array) -> list[mx.array]:
        """The same by the engine, the gradients too."""
        kept: Kept | None = None

        def forward(*arrays: mx.array) -> list[mx.array]:
            nonlocal kept
            every, final, kept = self._forward(arrays, self._keep)
            return [copied(a) for a in (*every, *([final] if self._final else []))]

        def backward(*arrays: mx.array) -> list[mx.array]:
            d, inputs = self._split(arrays)
            return self._backward(inputs, kept or self._forward(inputs, True)[2], d)

        def vjp(arrays: Arrays, d: Arrays, _: Any) -> Any:
            run = self._scan_backward
            if ready(d, arrays):
                run = _differentiable(backward, run)
            return run(*d, *arrays)

        function = _differentiable(forward, self.scan)
        function.vjp(vjp)
        return function(*arrays)

    def _parts(self, arrays: Sequence[Any], xp: Any) -> tuple[Any, Any, Sequence[Sequence[Any]]]:
        """X, h_0 and the weights of each direction."""
        x, *weights = arrays
        h_0 = weights.pop(0) if self._given else None
        n = len(weights) // self._directions
        each = [weights[i : i + n] for i in range(0, len(weights), n)]
        return x, zeros(xp, self._cell, x, each) if h_0 is None else h_0, each

    def _split(self, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """The gradients of the results, and what the function is given."""
        results = 1 + self._whole + self._final
        return arrays[:results], arrays[results:]

    def _scan_backward(self, *arrays: mx.array) -> Any:
        d, inputs = self._split(arrays)
        return mx.vjp(self.scan, list(inputs), list(d))[1]

    def _forward(self, arrays: Arrays, keep: bool) -> tuple[list[Array], Array, Any]:
        x, h_0, weights = self._parts([np.asarray(a) for a in arrays], np)
        extent = as_extent(self._lengths, self._reset)
        return run(self._cell, x, h_0, weights, extent, keep, self._recompute, self._whole)

    def _backward(self, arrays: Arrays, kept: Kept, d: Arrays) -> list[mx.array]:
        x, h_0, weights = self._parts([np.asarray(a) for a in arrays], np)
        d_states = [np.asarray(a) for a in d]
        # Absent gradients come as zeros, which would make 0 of a -0.
        d_final = d_states.pop() if self._final else np.zeros_like(h_0)
        d_output, *d_c = d_states
        if any(d.any() for d in d_c):
            N, L = x.shape[:2]
            each = [
                a.reshape(N, L, self._directions, a.shape[-1] // self._directions) for a in d_states
            ]
            d_output = np.concatenate(each, -1).reshape(N, L, len(each) * d_output.shape[-1])
        complete = [w for each in weights for w in _complete(self._cell, each, np)]
        d_x, d_h_0, d_weights = engine.backward(
            engine.pack(self._cell, complete),
            [None if w is None else w.shape for w in complete],
            x.swapaxes(0, 1),
            kept,
            d_output.swapaxes(0, 1),
            d_final,
            as_extent(self._lengths, self._reset),
            engine.get_num_threads(),
        )
        assert d_x is not None
        assert d_weights is not None
        gradients = [d_x.swapaxes(0, 1), d_h_0] if self._given else [d_x.swapaxes(0, 1)]
        each = len(Weights._fields)
        for i in range(self._directions):
            gradients += _incomplete(self._cell, Weights(*d_weights[each * i : each * (i + 1)]))
        return [copied(a) for a in gradients]
