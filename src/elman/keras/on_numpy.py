"""Keras's NumPy backend: a layer by the engine. There are no gradients."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (arrays of any dtype)

from collections.abc import Sequence
from typing import Any

import numpy as np

from elman import engine
from elman.engine import Array, Extent
from elman.spec import Cell, Weights

split, concatenate, zeros_like = np.split, np.concatenate, np.zeros_like

_FLOATS = ("float32", "float64", "bfloat16", "float16")


def served(x: Any, states: Sequence[Any], weights: Sequence[Any]) -> bool:
    """Whether the engine takes these arrays."""
    dtype: Any = x.dtype
    return dtype.name in _FLOATS and all(a.dtype == dtype for a in (*states, *weights))


def mask_rule(unroll: bool, zero_output: bool) -> tuple[bool, bool]:
    """Whether Keras's output at a masked step is zeros before a row's first; and anywhere.

    Before the first it is otherwise h_0, and later that of the step before.
    """
    return unroll, zero_output and not unroll


def run(
    cell: Cell, weights: Weights, states: Sequence[Array], x: Array, lengths: Array | None = None
) -> tuple[Array, Sequence[Array]]:
    """A layer: x and output (N, L, features), each state (N, H), lengths (N,) int64."""
    h_0 = np.concatenate(states, -1)[None]
    packed = engine.pack(cell, weights)
    extent = Extent(lengths)
    x = x.swapaxes(0, 1)
    output, h_n, _ = engine.forward(cell, packed, x, h_0, extent, engine.get_num_threads())
    return output.swapaxes(0, 1), np.split(h_n[0], len(states), -1)
