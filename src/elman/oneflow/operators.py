"""One layer of one or two directions on OneFlow's tensors: by the engine, or by the loop."""

# pyright: basic, reportMissingImports=false
# (OneFlow is not typed, and is not there where types are checked)

from collections.abc import Sequence
from itertools import compress
from types import SimpleNamespace
from typing import Any

import oneflow as flow
from oneflow import Tensor
from oneflow._oneflow_internal.autograd import AutogradFunctionBase

from elman import engine, scan
from elman.engine import Extent, Kept
from elman.spec import Cell, Weights


def is_served(*tensors: Tensor) -> bool:
    """Whether the engine takes these tensors."""
    return tensors[0].dtype in (flow.float32, flow.float64) and all(
        t.dtype == tensors[0].dtype
        and not (t.is_global or t.is_lazy)  # spread over devices, or without a value as yet
        and t.device.type == "cpu"
        for t in tensors
    )


def run_engine(
    cell: Cell,
    x: Tensor,
    h_0: Tensor,
    weights: Sequence[Weights],
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """One node of OneFlow's graph. Returns output and h_n, shaped as by ``engine.forward``.

    x (L, N, D), or (rows, D) packed; h_0 (directions, N, S); one :class:`Weights` a direction;
    lengths (N,) int64, reset (L, N) bool, batch_sizes (L,) int64.
    """
    extent = (None if t is None else t.numpy() for t in (lengths, reset, batch_sizes))
    given = [w for direction in weights for w in direction]
    there = [w is not None for w in given]
    return _Node(cell, there, Extent(*extent), recompute)(x, h_0, *compress(given, there))


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


class _Node:
    """Forward and backward of one layer, and what is no tensor: autograd passes on only those.

    Of the weights of ``spec.Weights``, a direction's behind the other's, some are `there`.
    """

    def __init__(self, cell: Cell, there: Sequence[bool], extent: Extent, recompute: bool) -> None:
        self._cell, self._there, self._extent = cell, there, extent
        self._recompute = recompute

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Run x, h_0 and the weights that are there. Returns output and h_n."""
        # forward itself runs with gradients off
        self._keep = flow.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return AutogradFunctionBase.apply("elman", self._forward, self._backward, *tensors)

    def _forward(self, ctx: Any, x: Tensor, h_0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        try:
            output, h_n, kept = engine.forward(
                self._cell,
                self._packed(weights),
                x.numpy(),
                h_0.numpy(),
                self._extent,
                engine.get_num_threads(),
                self._keep,
                self._recompute,
            )
        except ValueError as e:  # lengths out of range
            raise RuntimeError(str(e)) from None
        kept = [a for a in kept or () if a is not None]
        ctx.save_for_backward(x, *weights, *map(flow.from_numpy, kept))
        return flow.from_numpy(output), flow.from_numpy(h_n)

    def _backward(self, ctx: Any, d_output: Tensor, d_h_n: Tensor) -> tuple[Tensor | None, ...]:
        if flow.is_grad_enabled():
            raise RuntimeError("elman.oneflow: a gradient cannot be differentiated again")
        x, *tensors = ctx.saved_tensors
        count = sum(self._there)
        weights, (*gates, states) = tensors[:count], (t.numpy() for t in tensors[count:])
        d_x, d_h_0, d_weights = engine.backward(
            self._packed(weights),
            [None if w is None else w.shape for w in self._all(weights)],
            x.numpy(),
            Kept(gates[0] if gates else None, states),
            d_output.numpy(),
            d_h_n.numpy(),
            self._extent,
            engine.get_num_threads(),
            need_x=x.requires_grad,
            need_weights=any(w.requires_grad for w in weights),
        )
        each = [None] * count if d_weights is None else compress(d_weights, self._there)
        return tuple(None if d is None else flow.from_numpy(d) for d in (d_x, d_h_0, *each))

    def _packed(self, weights: Sequence[Tensor]) -> Any:
        each = self._all(weights)
        return engine.pack(self._cell, [None if w is None else w.numpy() for w in each])

    def _all(self, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """The weights with None for absent ones."""
        given = iter(weights)
        return [next(given) if is_there else None for is_there in self._there]
