"""JAX: a jitted ``lax.scan``, with the input's product for all steps before it.

Each mode has the layout of matrices in which XLA is the faster: (D, G*H) for inference, as Flax has
them, and torch's (G*H, D) for training. Rows that have ended hold their state, which is what a scan
can do about lengths.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..grid import Case, Inputs
from . import Arrays


class Form(NamedTuple):
    """What is fixed when a case is traced."""

    cell: Callable[..., Any]
    product: Callable[[Any, Any], Any]  # of rows and a matrix of weights
    directions: int
    inside: Any  # (L, N, 1), true before a row's end, or None


def gru(gi: Any, gh: Any, h: Any) -> Any:
    i_r, i_z, i_n = jnp.split(gi, 3, -1)
    h_r, h_z, h_n = jnp.split(gh, 3, -1)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    n = jnp.tanh(i_n + r * h_n)
    return n + z * (h - n)


def rnn(gi: Any, gh: Any, h: Any) -> Any:
    return jnp.tanh(gi + gh)


def direction(form: Form, w: list[Any], x: Any, h_0: Any, reverse: bool) -> Any:
    """One direction of one layer: output and h_n."""
    w_ih, w_hh, b_ih, b_hh = w

    def step(h: Any, now: Any) -> Any:
        gi, runs = now
        h_next = form.cell(gi, form.product(h, w_hh) + b_hh, h)
        if runs is None:
            return h_next, h_next
        return jnp.where(runs, h_next, h), jnp.where(runs, h_next, 0)

    gi = form.product(x, w_ih) + b_ih
    h_n, output = jax.lax.scan(step, h_0, (gi, form.inside), reverse=reverse)
    return output, h_n


def stack(form: Form, weights: list[Any], x: Any, h_0: Any) -> Any:
    """All layers: output and h_n."""
    finals: list[Any] = []
    while len(finals) < len(h_0):
        outputs: list[Any] = []
        for reverse in (False, True)[: form.directions]:
            k = len(finals)
            w = weights[4 * k : 4 * k + 4]
            output, h_n = direction(form, w, x, h_0[k], reverse)
            outputs.append(output)
            finals.append(h_n)
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
    return x, jnp.stack(finals)


class JaxScan:
    """The scan above, jitted, and its jitted vjp."""

    can_train = compiles = True

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        inside = None
        if inputs.lengths is not None:
            inside = jnp.asarray(np.arange(case.L)[:, None, None] < inputs.lengths[:, None])
        form = Form(gru if case.cell == "GRU" else rnn, jnp.matmul, case.directions, inside)
        self.names = list(inputs.weights)
        weights = list(inputs.weights.values())
        x, h_0 = jnp.asarray(inputs.x), jnp.asarray(inputs.h_0)
        self.arguments = [jnp.asarray(w.T.copy()) for w in weights], x, h_0
        self.run = jax.jit(partial(stack, form))

        as_torch = form._replace(product=lambda rows, matrix: rows @ matrix.T)
        self.primals = [jnp.asarray(w) for w in weights], x, h_0
        self.cotangents = jnp.asarray(inputs.d_output), jnp.asarray(inputs.d_h_n)
        run = partial(stack, as_torch)
        self.vjp = jax.jit(lambda primals, cotangents: jax.vjp(run, *primals)[1](cotangents))

    def infer(self) -> Any:
        return jax.block_until_ready(self.run(*self.arguments))

    def answer(self, result: Any) -> Arrays:
        return dict(zip(("output", "h_n"), map(np.asarray, result), strict=True))

    def train(self) -> Any:
        return jax.block_until_ready(self.vjp(self.primals, self.cotangents))

    def gradients(self, result: Any) -> Arrays:
        weights, x, h_0 = result
        by_name = {n: np.asarray(d) for n, d in zip(self.names, weights, strict=True)}
        return {"x": np.asarray(x), "h_0": np.asarray(h_0), **by_name}
