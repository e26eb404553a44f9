"""JAX: a jitted ``lax.scan``, with the input's product for all steps before it.

Matrices lie as Flax and Haiku have them, (D, G*H) and (H, G*H). Rows that have ended hold their
state, which is what a scan can do about lengths.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..grid import Case, Inputs
from . import Arrays


def gru(gi: Any, h: Any, w_hh: Any, b_hh: Any) -> Any:
    i_r, i_z, i_n = jnp.split(gi, 3, -1)
    h_r, h_z, h_n = jnp.split(h @ w_hh + b_hh, 3, -1)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    n = jnp.tanh(i_n + r * h_n)
    return n + z * (h - n)


def rnn(gi: Any, h: Any, w_hh: Any, b_hh: Any) -> Any:
    return jnp.tanh(gi + (h @ w_hh + b_hh))


def direction(cell: Any, w: list[Any], x: Any, h_0: Any, inside: Any, reverse: bool) -> Any:
    """One direction of one layer; `inside` is (L, N, 1), true before a row's end, or None."""
    w_ih, w_hh, b_ih, b_hh = w

    def step(h: Any, now: Any) -> Any:
        gi, runs = now
        h_next = cell(gi, h, w_hh, b_hh)
        if runs is None:
            return h_next, h_next
        return jnp.where(runs, h_next, h), jnp.where(runs, h_next, 0)

    h_n, output = jax.lax.scan(step, h_0, (x @ w_ih + b_ih, inside), reverse=reverse)
    return output, h_n


def stack(cell: Any, directions: int, inside: Any, weights: list[Any], x: Any, h_0: Any) -> Any:
    """All layers: output and h_n."""
    finals: list[Any] = []
    while len(finals) < len(h_0):
        outputs: list[Any] = []
        for d in range(directions):
            k = len(finals)
            output, h_n = direction(
                cell, weights[4 * k : 4 * k + 4], x, h_0[k], inside, reverse=d == 1
            )
            outputs.append(output)
            finals.append(h_n)
        x = outputs[0] if directions == 1 else jnp.concatenate(outputs, -1)
    return x, jnp.stack(finals)


class JaxScan:
    """The scan above, jitted, and its jitted vjp."""

    can_train = True

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        self.names = list(inputs.weights)
        weights = [jnp.asarray(a.T.copy()) for a in inputs.weights.values()]
        self.primals = (weights, jnp.asarray(inputs.x), jnp.asarray(inputs.h_0))
        self.cotangents = (jnp.asarray(inputs.d_output), jnp.asarray(inputs.d_h_n))
        inside = None
        if inputs.lengths is not None:
            inside = jnp.asarray(np.arange(case.L)[:, None, None] < inputs.lengths[:, None])
        run = partial(stack, gru if case.cell == "GRU" else rnn, case.directions, inside)
        self.run = jax.jit(run)
        self.vjp = jax.jit(lambda primals, cotangents: jax.vjp(run, *primals)[1](cotangents))

    def infer(self) -> Any:
        return jax.block_until_ready(self.run(*self.primals))

    def answer(self, result: Any) -> Arrays:
        return dict(zip(("output", "h_n"), map(np.asarray, result), strict=True))

    def train(self) -> Any:
        return jax.block_until_ready(self.vjp(self.primals, self.cotangents))

    def gradients(self, result: Any) -> Arrays:
        weights, x, h_0 = result
        by_name = {n: np.asarray(d).T for n, d in zip(self.names, weights, strict=True)}
        return {"x": np.asarray(x), "h_0": np.asarray(h_0), **by_name}
