"""Keras's JAX backend: a layer by the functions of ``elman.jax``."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of JAX are not typed)

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from elman.jax import gru, lstm, rnn
from elman.keras.on_numpy import mask_rule as mask_rule  # Keras has the same on both
from elman.spec import WEIGHTS, Cell, Weights

split, concatenate, zeros_like = jnp.split, jnp.concatenate, jnp.zeros_like

_FLOATS = ("float32", "float64", "bfloat16", "float16")


def served(x: Any, states: Sequence[Any], weights: Sequence[Any]) -> bool:
    """Whether the engine takes these arrays."""
    alike = all(a.dtype == x.dtype for a in (*states, *weights))
    return alike and x.dtype.name in _FLOATS and jax.default_backend() == "cpu"


def run(
    cell: Cell, weights: Weights, states: Sequence[Any], x: Any, lengths: Any = None
) -> tuple[Any, Sequence[Any]]:
    """A layer: x and output (N, L, features), each state (N, H), lengths (N,)."""
    named = {name: w for name, w in zip(WEIGHTS, weights, strict=True) if w is not None}
    x = jnp.swapaxes(x, 0, 1)
    if cell.kind == "LSTM":
        output, last = lstm(named, x, tuple(states), lengths=lengths)
        return jnp.swapaxes(output, 0, 1), last
    if cell.kind == "GRU":
        output, h_n = gru(named, x, *states, lengths=lengths, reset_after=cell.gated is None)
    else:
        nonlinearity = cell.name.removeprefix("rnn_")
        output, h_n = rnn(named, x, *states, lengths=lengths, nonlinearity=nonlinearity)
    return jnp.swapaxes(output, 0, 1), [h_n]
