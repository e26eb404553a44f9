"""RNN, GRU and LSTM as pure functions of weights and input."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of JAX are not typed)

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from elman.jax import operators
from elman.jax.operators import Call, absent
from elman.spec import (
    CELLS,
    WEIGHTS,
    Cell,
    Spec,
    check_input,
    check_lengths,
    check_reset,
    check_weights,
    each_of,
)
from elman.spec import gru as gru_cell

#: Of x, and of weights.
DTYPES = ("float32", "float64", "bfloat16", "float16")
Array = jax.Array


def rnn(
    weights: Mapping[str, Any],
    x: Any,
    h_0: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    reset: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """One direction of an Elman RNN: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with relu.

    Parameters
    ----------
    weights : ``weight_ih`` (H, D), ``weight_hh`` (H, H), and both of ``bias_ih`` and ``bias_hh``
        (H), or neither.
    x : (L, N, D) or (L, D), float32, float64, bfloat16 or float16, as are the weights. In half
        precision the state and all sums are float32.
    h_0 : (N, H) or (H), zeros by default.
    nonlinearity : "tanh" or "relu".
    lengths, reset, reverse : as of :func:`gru`.

    Returns
    -------
    output (L, N, H) or (L, H), in the type of x, and the final state h_n, shaped as h_0.

    >>> import elman.jax, jax.numpy as jnp
    >>> weights = {"weight_ih": jnp.ones((8, 4)), "weight_hh": jnp.ones((8, 8))}
    >>> output, h_n = elman.jax.rnn(weights, jnp.ones((6, 2, 4)))
    >>> output.shape, h_n.shape
    ((6, 2, 8), (2, 8))
    """
    cell = f"rnn_{nonlinearity}"
    if cell not in CELLS:
        raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    states = None if h_0 is None else (h_0,)
    output, (h_n,) = _run(CELLS[cell], weights, x, states, lengths, reset, reverse)
    return output, h_n


def gru(
    weights: Mapping[str, Any],
    x: Any,
    h_0: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    reset: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """One direction of a GRU.

    ::

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)          reset gate
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)          update gate
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn)) candidate
        h' = (1 - z) * n + z * h

    Parameters
    ----------
    weights : ``weight_ih`` (3H, D), ``weight_hh`` (3H, H), rows in the order r, z, n, and both of
        ``bias_ih`` and ``bias_hh`` (3H), or neither.
    x : (L, N, D) or (L, D), float32, float64, bfloat16 or float16, as are the weights. In half
        precision the state and all sums are float32.
    h_0 : (N, H) or (H), zeros by default.
    reset_after : False takes W_hn (r * h) + b_hn in place of r * (W_hn h + b_hn).
    lengths : integers (N) or (), how many steps each row takes. Its input past them is not read,
        its output there is 0, and h_n is its state after the last of them. In a program that runs,
        one that is negative or beyond L is an error of XLA's; on the scan it is as good as 0 or L.
    reset : booleans (L, N) or (L). True at t starts a new episode: nothing crosses from t-1 to t.
    reverse : run from the last step, or each row's own last one, to the first.

    Returns
    -------
    output (L, N, H) or (L, H), in the type of x, and the final state h_n, shaped as h_0 and of its
    type.

    Raises
    ------
    ValueError : for weights missing or unexpected, and shapes that do not fit.
    TypeError : for types that do not.

    >>> import elman.jax, jax, jax.numpy as jnp
    >>> weights = {"weight_ih": jnp.ones((24, 4)), "weight_hh": jnp.ones((24, 8))}
    >>> x, lengths = jnp.ones((6, 2, 4)), jnp.array([6, 3])
    >>> output, h_n = jax.jit(elman.jax.gru)(weights, x, lengths=lengths)
    >>> output.shape, h_n.shape
    ((6, 2, 8), (2, 8))
    >>> bool((output[2, 1] == h_n[1]).all())
    True
    """
    states = None if h_0 is None else (h_0,)
    cell = gru_cell("GRU", reset_after)
    output, (h_n,) = _run(cell, weights, x, states, lengths, reset, reverse)
    return output, h_n


def lstm(
    weights: Mapping[str, Any],
    x: Any,
    states: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, Array]]:
    """One direction of an LSTM.

    ::

        i  = σ(W_ii x + b_ii + W_hi h + b_hi)    input gate
        f  = σ(W_if x + b_if + W_hf h + b_hf)    forget gate
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg) cell
        o  = σ(W_io x + b_io + W_ho h + b_ho)    output gate
        c' = f * c + i * g
        h' = o * tanh(c')

    Parameters
    ----------
    weights : ``weight_ih`` (4H, D), ``weight_hh`` (4H, H), rows in the order i, f, g, o, and both
        of ``bias_ih`` and ``bias_hh`` (4H), or neither.
    x : as of :func:`gru`.
    states : (h_0, c_0), each (N, H) or (H), zeros by default.
    lengths, reset, reverse : as of :func:`gru`.

    Returns
    -------
    output (L, N, H) or (L, H), in the type of x, and the final states (h_n, c_n), shaped as h_0.

    >>> import elman.jax, jax.numpy as jnp
    >>> weights = {"weight_ih": jnp.ones((32, 4)), "weight_hh": jnp.ones((32, 8))}
    >>> output, (h_n, c_n) = elman.jax.lstm(weights, jnp.ones((6, 2, 4)), reverse=True)
    >>> output.shape, c_n.shape
    ((6, 2, 8), (2, 8))
    """
    output, (h_n, c_n) = _run(CELLS["lstm"], weights, x, states, lengths, reset, reverse)
    return output, (h_n, c_n)


def _run(
    cell: Cell, weights: Any, x: Any, states: Any, lengths: Any, reset: Any, reverse: bool
) -> tuple[Any, tuple[Any, ...]]:
    title = cell.kind
    if not isinstance(reverse, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{title}: reverse must be a bool, got {reverse!r}")
    x = _array(title, "x", x)
    given = _weights(cell, weights, x)
    *batch, _ = x.shape[1:]
    H = given["weight_hh"].shape[1]
    wide = jnp.dtype("float32") if x.dtype.itemsize == 2 else x.dtype
    first = _states(cell, states, (*batch, H), (x.dtype, wide), wide)
    extents = [
        None if lengths is None else _lengths(title, lengths, tuple(batch)),
        None if reset is None else _reset(title, reset, x.shape[:-1]),
    ]

    def batched(a: Any, axis: int) -> Any:
        return a if batch else jnp.expand_dims(a, axis)

    def unbatched(a: Any, axis: int) -> Any:
        return a if batch else jnp.squeeze(a, axis)

    none = absent(jnp.zeros((), wide))
    h_c = [batched(a.astype(wide), 0) for a in first]
    operands = [batched(x.astype(wide), 1), *h_c, *[none] * (2 - len(h_c))]
    operands += [given[n].astype(wide) if n in given else none for n in WEIGHTS[:4]]
    operands += [absent() if a is None else batched(a, -1) for a in extents]
    output, *last, _ = operators.layer.bind(*operands, call=Call(cell.name, reverse))
    output = unbatched(output, 1).astype(x.dtype)
    pairs = zip(first, last, strict=False)
    return output, tuple(unbatched(a, 0).astype(before.dtype) for before, a in pairs)


def _array(title: str, name: str, value: Any) -> Any:
    """The value as an array. None is none, though JAX took it for NaN once."""
    cause = None
    if value is not None:
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError) as e:
            cause = e
    raise TypeError(f"{title}: {name} must be an array, got {type(value)}") from cause


def _weights(cell: Cell, weights: Any, x: Any) -> dict[str, Any]:
    """The weights as arrays, which fit one another and x."""
    title = cell.kind
    if not isinstance(weights, Mapping):
        raise TypeError(f"{title}: weights must be a mapping, got {type(weights)}")
    if x.dtype.name not in DTYPES:
        raise TypeError(f"{title}: x must be {', '.join(DTYPES)}, got {x.dtype}")
    given = {str(name): _array(title, str(name), w) for name, w in weights.items()}
    for name, w in given.items():
        if w.dtype != x.dtype:
            raise TypeError(f"{title}: {name} must be {x.dtype}, as x is, got {w.dtype}")
    shapes = {name: w.shape for name, w in given.items()}
    sizes = [shapes.get(name, ()) for name in ("weight_ih", "weight_hh")]
    D, H = (s[1] if len(s) == 2 and s[1] > 0 else 1 for s in sizes)
    spec = Spec(cell, D, H, bias="bias_ih" in given or "bias_hh" in given)
    check_weights(title, spec.cell_weight_shapes(), shapes, ValueError)
    check_input(spec, x.shape, ValueError)
    return given


def _states(cell: Cell, states: Any, shape: Any, dtypes: Any, default: Any) -> list[Any]:
    if states is None:
        return [jnp.zeros(shape, default) for _ in cell.states]
    named = zip(cell.states, each_of(cell.kind, cell.states, states), strict=True)
    first = [_array(cell.kind, f"{name}_0", a) for name, a in named]
    for name, a in zip(cell.states, first, strict=True):
        if a.shape != shape:
            raise ValueError(f"{cell.kind}: {name}_0 must have shape {shape}, got {a.shape}")
        if a.dtype not in dtypes:
            expected = " or ".join(dict.fromkeys(map(str, dtypes)))
            raise TypeError(f"{cell.kind}: {name}_0 must be {expected}, got {a.dtype}")
    return first


def _lengths(title: str, lengths: Any, batch: Any) -> Any:
    a = _array(title, "lengths", lengths)
    is_integral = jnp.issubdtype(a.dtype, jnp.integer)
    check_lengths(title, a.shape, is_integral, batch, ValueError, a.dtype)
    return a if a.dtype in (jnp.int32, jnp.int64) else a.astype(jnp.int32)


def _reset(title: str, reset: Any, expected: Any) -> Any:
    a = _array(title, "reset", reset)
    check_reset(title, a.shape, a.dtype == bool, expected, ValueError, a.dtype)
    return a
