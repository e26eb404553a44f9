"""One layer of one or two directions on OneFlow's tensors: by the engine, or by the loop."""

# pyright: basic, reportMissingImports=false
# (OneFlow is not typed, and is not there where types are checked)

import weakref
from collections.abc import Sequence
from itertools import accumulate, compress
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import oneflow as flow
from oneflow import Tensor
from oneflow._oneflow_internal.autograd import AutogradFunctionBase

from elman import engine, scan
from elman.engine import Array, Extent, Kept
from elman.spec import Cell, Weights


def is_served(*tensors: Tensor) -> bool:
    """Whether the engine takes these tensors."""
    return tensors[0].dtype in (flow.float32, flow.float64) and all(
        t.dtype == tensors[0].dtype
        and not (t.is_global or t.is_lazy)  # spread over devices, or without a value as yet
        and t.device.type == "cpu"
        for t in tensors
    )


class Layout(NamedTuple):
    """How the tensors lie, if not as the engine has them: x (L, N, D), states (directions, N, S).

    batch_first, batch_first_after : N comes before L in x, and in output.
    ahead, state_ahead : the axes in front of x's and of a state's features, where some are missing.
    axes : L and N there.
    output : output is a result; a cell gives its states alone.
    """

    batch_first: bool = False
    batch_first_after: bool = False
    ahead: tuple[int, ...] | None = None
    state_ahead: tuple[int, ...] = ()
    axes: tuple[int, int] = (1, 1)
    output: bool = True


def run_engine(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Weights],
    layout: Layout,
    extent: Sequence[Tensor | None] = (),
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """One node of OneFlow's graph. Returns output, unless of a cell, and the states after it.

    `states` are h, or h and c, or none for zeros; one :class:`Weights` a direction; the extent is
    lengths (N,) int64, reset (L, N) bool, batch_sizes (L,) int64.
    """
    arrays = Extent(*(None if t is None else t.numpy() for t in extent))
    given = [w for direction in weights for w in direction]
    there = [w is not None for w in given]
    node = _Node(cell, len(states), there, layout, arrays, recompute)
    return node(x, *states, *compress(given, there))


def run_scan(
    cell: Cell, x: Tensor, h_0: Tensor, weights: Sequence[Weights], lengths: Any, reset: Any
) -> tuple[Tensor, Tensor]:
    """The same for padded x by the loop of ``elman.scan``, on any device and in any graph."""
    return scan.layer(cell, x, h_0, list(weights), xp=_library, lengths=lengths, reset=reset)


#: OneFlow under the names that the loop calls.
_library = SimpleNamespace(
    tanh=flow.tanh,
    where=flow.where,
    zeros_like=flow.zeros_like,
    stack=flow.stack,
    concatenate=flow.cat,
)


#: Values up to which it is quicker to copy all tensors into one than to read each.
_FEW = 1 << 16


def _read(tensors: Sequence[Tensor]) -> list[Array]:
    """The tensors' values. Each reading waits for OneFlow's threads, and they for this one."""
    sizes = [t.numel() for t in tensors]
    if len(sizes) == 1 or 0 in sizes or sum(sizes) > _FEW:
        # Detached ones hold the memory, even if a tensor is given another.
        return [t.detach().numpy() for t in tensors]
    with flow.no_grad():
        flat = [t if t.ndim == 1 else t.reshape(-1) for t in tensors]
        values = flow.cat(flat, 0).numpy()
    ends = accumulate(sizes)
    return [
        values[end - size : end].reshape(tuple(t.shape))
        for t, size, end in zip(tensors, sizes, ends, strict=True)
    ]


class _Node:
    """Forward and backward of one layer, and what is no tensor: autograd passes on only those.

    Its tensors are x, as many states as there are given, and of the weights of ``spec.Weights``, a
    direction's behind the other's, those that are `there`.
    """

    def __init__(
        self,
        cell: Cell,
        states: int,
        there: Sequence[bool],
        layout: Layout,
        extent: Extent,
        recompute: bool,
    ) -> None:
        self._cell, self._states, self._there = cell, states, there
        self._layout, self._extent, self._recompute = layout, extent, recompute

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the tensors: the results, in autograd's graph if a gradient may be asked for."""
        self._needed = [t.requires_grad for t in tensors]
        # forward itself runs with gradients off
        self._keep = flow.is_grad_enabled() and any(self._needed)
        if not self._keep:
            return self._forward(None, *tensors)
        results = AutogradFunctionBase.apply("elman", self._forward, self._backward, *tensors)
        return (results,) if isinstance(results, Tensor) else results

    def _forward(self, ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        x, *others = _read(tensors)
        x = self._inside(x, self._layout.batch_first)
        weights = self._all(others[self._states :])
        self._sizes_of_states(x, weights)
        first = np.zeros(self._state_shape, x.dtype)
        if self._states:
            first = self._joined(others[: self._states])
        try:
            output, h_n, kept = engine.forward(
                self._cell,
                engine.pack(self._cell, weights),
                x,
                first,
                self._extent,
                engine.get_num_threads(),
                self._keep,
                self._recompute,
            )
        except ValueError as e:  # lengths out of range
            raise RuntimeError(str(e)) from None
        if kept is not None:
            self._hold(ctx, [x, *weights, *kept])
        self._shape = output.shape
        results = self._apart(h_n)
        if self._layout.output:
            results.insert(0, self._outside(output, self._layout.batch_first_after))
        return tuple(flow.from_numpy(a) for a in results)

    def _hold(self, ctx: Any, arrays: list[Array | None]) -> None:
        """Keep arrays for backward, as tensors that hold them: those OneFlow lets go of in time."""
        ctx.save_for_backward(*(flow.from_numpy(a) for a in arrays if a is not None))
        self._held = [None if a is None else weakref.ref(a) for a in arrays]

    def _backward(self, _: Any, *d: Tensor) -> tuple[Tensor | None, ...]:
        if flow.is_grad_enabled():
            raise RuntimeError("elman.oneflow: a gradient cannot be differentiated again")
        layout, arrays, states = self._layout, _read(d), self._states
        held: list[Any] = [None if ref is None else ref() for ref in self._held]
        x, *weights = held[:-2]
        d_output = np.zeros(self._shape, x.dtype)
        if layout.output:
            d_output = self._inside(arrays.pop(0), layout.batch_first_after)
        d_x, d_h_0, d_weights = engine.backward(
            engine.pack(self._cell, weights),
            [None if w is None else w.shape for w in weights],
            x,
            Kept(*held[-2:]),
            d_output,
            self._joined(arrays),
            self._extent,
            engine.get_num_threads(),
            need_x=self._needed[0],
            need_weights=any(self._needed[1 + states :]),
        )
        d_x = None if d_x is None else self._outside(d_x, layout.batch_first)
        d_states = self._apart(d_h_0) if states else []
        count = sum(self._there)
        each = [None] * count if d_weights is None else compress(d_weights, self._there)
        return tuple(None if a is None else flow.from_numpy(a) for a in (d_x, *d_states, *each))

    def _inside(self, a: Array, batch_first: bool) -> Array:
        """X, or the gradient of output, as the engine has it."""
        if batch_first:
            return a.swapaxes(0, 1)
        whole = self._layout.ahead is None
        return a if whole else a.reshape(*self._layout.axes, a.shape[-1])

    def _outside(self, a: Array, batch_first: bool) -> Array:
        """Output, or the gradient of x, as OneFlow has it."""
        if batch_first:
            return a.swapaxes(0, 1)
        ahead = self._layout.ahead
        return a if ahead is None else a.reshape(*ahead, a.shape[-1])

    def _sizes_of_states(self, x: Array, weights: Sequence[Any]) -> None:
        """P, and the states' shape (directions, N, S)."""
        rows, self._P = weights[1].shape
        batch_sizes = self._extent.batch_sizes
        N = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
        S = self._cell.state_size(rows // len(self._cell.gates), self._P)
        self._state_shape = (len(self._there) // len(Weights._fields), N, S)

    def _joined(self, states: list[Array]) -> Array:
        """States, or their gradients, as the engine has them: side by side."""
        joined = states[0] if len(states) == 1 else np.concatenate(states, -1)
        return joined.reshape(self._state_shape)

    def _apart(self, state: Array) -> list[Array]:
        """The same as OneFlow has them."""
        if self._layout.ahead is not None:
            state = state.reshape(*self._layout.state_ahead, state.shape[-1])
        one = len(self._cell.states) == 1
        return [state] if one else [state[..., : self._P], state[..., self._P :]]

    def _all(self, weights: Sequence[Array]) -> list[Any]:
        """The weights with None for absent ones."""
        given = iter(weights)
        return [next(given) if is_there else None for is_there in self._there]
