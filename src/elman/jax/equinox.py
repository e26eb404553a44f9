"""Equinox: its cells over a sequence."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# (parts of Equinox are not typed)

from functools import partial
from typing import Any

import equinox
import jax

from elman.jax import cells
from elman.jax.operators import paths

_KINDS = {equinox.nn.GRUCell: "GRU", equinox.nn.LSTMCell: "LSTM"}


def scan(cell: Any, xs: Any, state: Any) -> tuple[Any, Any]:
    """Run one of Equinox's cells over a sequence, as a ``lax.scan`` of the cell does.

    Parameters
    ----------
    cell : an ``equinox.nn.GRUCell`` or ``LSTMCell``. Another one, ``cell(x, state)`` that gives the
        next state, and one whose types differ from those of xs and the state, run by ``lax.scan``
        itself, path "own".
    xs : (L, D); under ``jax.vmap`` whole batches.
    state : the cell's own: h (H), or an LSTM's (h, c).

    Returns
    -------
    The final state, and h at every step, (L, H): first the state, as ``lax.scan`` has it.

    >>> import elman.jax.equinox, equinox, jax, jax.numpy as jnp
    >>> cell = equinox.nn.GRUCell(4, 8, key=jax.random.key(0))
    >>> state, output = elman.jax.equinox.scan(cell, jnp.ones((6, 4)), jnp.zeros(8))
    >>> state.shape, output.shape
    ((8,), (6, 8))
    """
    known, title = _known(cell), f"scan of {type(cell).__name__}"
    is_pair = isinstance(state, tuple)
    states = state if is_pair else (state,)
    if known is not None and is_pair != (known.kind == "LSTM"):
        expected = "h" if is_pair else "(h, c)"
        raise TypeError(f"{title}: state must be {expected}, got {type(state)}")
    if known is not None and known.takes(xs, *states):
        output, last = known.run(xs, states)
        return (last if is_pair else last[0]), output
    paths.take("own", title)

    def step(state: Any, x: Any) -> Any:
        state = cell(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    return jax.lax.scan(step, state, xs)


def _known(cell: Any) -> cells.Known | None:
    kind = _KINDS.get(type(cell))
    weights = None if kind is None else cells.read("equinox", kind, partial(getattr, cell))
    return None if kind is None or weights is None else cells.Known(kind, weights)
