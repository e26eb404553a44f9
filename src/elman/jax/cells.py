"""The cells of Flax and Equinox over a sequence: which of them the engine has, and their weights.

How their tensors are laid out stands in ``weights/frameworks.py``.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of JAX are not typed)

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elman.jax import functions
from elman.spec import WEIGHTS, Weights
from elman.weights.frameworks import FRAMEWORKS

_NONLINEARITIES = ((jnp.tanh, "tanh"), (jax.nn.tanh, "tanh"), (jax.nn.relu, "relu"))


class Known(NamedTuple):
    """A cell that the engine has.

    Attributes
    ----------
    kind : RNN, GRU or LSTM.
    weights : as :func:`elman.jax.gru` and its like take them.
    nonlinearity : of an RNN.
    """

    kind: str
    weights: Mapping[str, Any]
    nonlinearity: str | None = None

    def takes(self, *arrays: Any) -> bool:
        """Whether these are arrays, and all are of the weights' type, which the engine has."""
        dtypes = {getattr(a, "dtype", None) for a in (*self.weights.values(), *arrays)}
        return len(dtypes) == 1 and str(dtypes.pop()) in functions.DTYPES

    def run(self, x: Any, states: tuple[Any, ...], **extent: Any) -> tuple[Any, tuple[Any, ...]]:
        """Output and the final states: h, and where there is one c."""
        if self.kind == "LSTM":
            return functions.lstm(self.weights, x, states, **extent)
        if self.kind == "GRU":
            output, h_n = functions.gru(self.weights, x, *states, **extent)
        else:
            extent["nonlinearity"] = self.nonlinearity
            output, h_n = functions.rnn(self.weights, x, *states, **extent)
        return output, (h_n,)


def read(framework: str, kind: str, tensor: Callable[[str], Any]) -> Mapping[str, Any] | None:
    """A cell's weights; ``tensor(name)`` gives a tensor of it, or None. None if it has others."""
    for form in FRAMEWORKS[framework].forms:
        if form.kind != kind:
            continue
        tensors = {name: tensor(name) for name in form.tensors}
        there = [t for t in tensors.values() if t is not None]
        missing = [name for name, t in tensors.items() if t is None]
        if missing and not (form.optional_bias and missing == form.bias_names):
            continue
        weights = Weights(*there) if missing else form.restore(there)
        return {n: w for n, w in zip(WEIGHTS, weights, strict=True) if w is not None}
    return None


# Flax


def read_flax(
    framework: str, kinds: Mapping[Any, str], cell: Any, tensor: Callable[[str], Any]
) -> Known | None:
    """A cell of Flax's, of which `kinds` are known; None where the engine has not its like."""
    kind = kinds.get(type(cell))
    if kind is None or getattr(cell, "residual", False):
        return None
    nonlinearity = next((name for f, name in _NONLINEARITIES if f is cell.activation_fn), None)
    stock = nonlinearity == "tanh" and getattr(cell, "gate_fn", None) is jax.nn.sigmoid
    if nonlinearity is None or not (stock or kind == "RNN"):
        return None
    weights = read(framework, kind, tensor)
    if weights is None or cell.dtype not in (None, weights["weight_ih"].dtype):
        return None
    return Known(kind, weights, nonlinearity)


def parts(carry: Any) -> tuple[Any, ...]:
    """Flax's carry, h or (c, h), as states: h, or h and c."""
    return carry[::-1] if isinstance(carry, tuple) else (carry,)


def whole(states: tuple[Any, ...]) -> Any:
    """The way back."""
    return states[0] if len(states) == 1 else states[::-1]


def check_flax(
    title: str, cell: Known, inputs: Any, carry: Any, seq_lengths: Any, time_axis: int
) -> None:
    """Raise where what Flax's RNN was called with does not fit the cell."""
    D, H = (cell.weights[name].shape[1] for name in ("weight_ih", "weight_hh"))
    if inputs.ndim < 2 or inputs.shape[-1] != D:
        axes = "(*batch, L, D)" if time_axis or inputs.ndim < 3 else "(L, *batch, D)"
        raise ValueError(f"{title}: inputs must be {axes} with D = {D}, got {inputs.shape}")
    batch = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 : -1]
    expected: Any = (*batch, H)
    if cell.kind == "LSTM":
        expected = (expected, expected)
    got = jax.tree.map(np.shape, carry)
    if got != expected:
        raise ValueError(f"{title}: initial_carry must have shape {expected}, got {got}")
    if seq_lengths is None:
        return
    lengths = np.shape(seq_lengths), jnp.result_type(seq_lengths)
    if lengths[0] != batch or not jnp.issubdtype(lengths[1], jnp.integer):
        what = f"{lengths[1]} of {lengths[0]}"
        raise ValueError(f"{title}: seq_lengths must be integers of shape {batch}, got {what}")


def run_flax(
    cell: Known,
    inputs: Any,
    carry: Any,
    seq_lengths: Any,
    time_axis: int,
    reverse: bool,
    flip: Callable[..., Any] | None,
) -> tuple[Any, Any]:
    """Carry and outputs. `flip`, Flax's own, puts these in the order in which steps were taken."""
    x = jnp.moveaxis(inputs, time_axis, 0)
    steps, *batch, D = x.shape
    rows = math.prod(batch)
    lengths = None if seq_lengths is None else jnp.asarray(seq_lengths).reshape(rows)
    states = tuple(a.reshape(rows, a.shape[-1]) for a in parts(carry))
    x = x.reshape(steps, rows, D)
    output, last = cell.run(x, states, lengths=lengths, reverse=bool(reverse))
    output = output.reshape(steps, *batch, output.shape[-1])
    if flip is not None:
        output = flip(output, seq_lengths, num_batch_dims=len(batch), time_major=True)
    carries = tuple(a.reshape(*batch, a.shape[-1]) for a in last)
    outputs = jnp.moveaxis(output, 0, time_axis)
    return whole(carries), outputs
