"""JAX: a jitted ``lax.scan``, with the input's product for all steps before it; and ``elman.jax``.

Of the scan each mode has the layout of matrices in which XLA is the faster: (D, G*H) for inference,
as Flax has them, and torch's (G*H, D) for training. Rows that have ended hold their state, which is
what a scan can do about lengths. XLA takes as many threads as its process has processors: see
``measure.hold``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elman
import elman.jax
from elman.spec import WEIGHTS

from ..grid import Case, Inputs
from . import Arrays, answer, parts, whole

State = tuple[Any, ...]  # h, or h and c


class Form(NamedTuple):
    """What is fixed when a case is traced."""

    cell: Callable[[Any, Any, State], State]  # of W_ih x + b_ih, what gives W_hh h + b_hh, states
    product: Callable[[Any, Any], Any]  # of rows and a matrix of weights
    gates: int  # the matrix's axis of gates
    inside: Any  # (L, N, 1), true before a row's end, or None


def gru(gi: Any, recurrent: Any, state: State) -> State:
    (h,) = state
    i_r, i_z, i_n = jnp.split(gi, 3, -1)
    h_r, h_z, h_n = jnp.split(recurrent(h), 3, -1)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    n = jnp.tanh(i_n + r * h_n)
    return (n + z * (h - n),)


def lstm(gi: Any, recurrent: Any, state: State) -> State:
    h, c = state
    i, f, g, o = jnp.split(gi + recurrent(h), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def rnn(gi: Any, recurrent: Any, state: State) -> State:
    return (jnp.tanh(gi + recurrent(*state)),)


def gru_reset_before(gi: Any, recurrent: Any, state: State) -> State:
    (h,) = state
    i_r, i_z, i_n = jnp.split(gi, 3, -1)
    H = h.shape[-1]
    h_r, h_z = jnp.split(recurrent(h, 0, 2 * H), 2, -1)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    n = jnp.tanh(i_n + recurrent(r * h, 2 * H, 3 * H))
    return (n + z * (h - n),)


CELLS = {"GRU": gru, "LSTM": lstm, "RNN": rnn, "GRU-reset-before": gru_reset_before}


def direction(form: Form, w: list[Any], x: Any, state: State, reverse: bool) -> Any:
    """One direction of one layer: output and the final state."""
    w_ih, w_hh, b_ih, b_hh = w

    def recurrent(h: Any, first: int = 0, last: int = len(b_hh)) -> Any:
        some = jax.lax.slice_in_dim(w_hh, first, last, axis=form.gates)
        return form.product(h, some) + b_hh[first:last]

    def step(state: State, now: Any) -> Any:
        gi, runs = now
        after = form.cell(gi, recurrent, state)
        if runs is None:
            return after, after[0]
        held = tuple(jnp.where(runs, *pair) for pair in zip(after, state, strict=True))
        return held, jnp.where(runs, after[0], 0)

    gi = form.product(x, w_ih) + b_ih
    final, output = jax.lax.scan(step, state, (gi, form.inside), reverse=reverse)
    return output, final


def stack(
    run: Callable[..., Any], directions: int, weights: list[Any], x: Any, states: State
) -> Any:
    """All layers, whose directions `run` runs: output and the final states."""
    finals: list[Any] = []
    while len(finals) < len(states[0]):
        outputs: list[Any] = []
        for reverse in (False, True)[:directions]:
            k = len(finals)
            w = weights[4 * k : 4 * k + 4]
            output, final = run(w, x, tuple(a[k] for a in states), reverse)
            outputs.append(output)
            finals.append(final)
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
    return x, *map(jnp.stack, zip(*finals, strict=True))


class JaxScan:
    """The scan above, jitted, and its jitted vjp."""

    can_train = compiles = True

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        self.states, self.names = case.states, list(inputs.weights)
        weights = list(inputs.weights.values())
        x, states = jnp.asarray(inputs.x), tuple(map(jnp.asarray, inputs.states.values()))
        self.primals = [jnp.asarray(w) for w in weights], x, states
        self.cotangents = tuple(map(jnp.asarray, (inputs.d_output, *inputs.d_states.values())))
        self.arguments = self.primals
        self.prepare(case, inputs, threads)

    def prepare(self, case: Case, inputs: Inputs, threads: int) -> None:
        """Compile what is timed."""
        inside = None
        if inputs.lengths is not None:
            inside = jnp.asarray(np.arange(case.L)[:, None, None] < inputs.lengths[:, None])
        form = Form(CELLS[case.cell], jnp.matmul, 1, inside)
        weights, x, states = self.primals
        self.arguments = [w.T.copy() for w in weights], x, states
        as_torch = form._replace(product=lambda rows, matrix: rows @ matrix.T, gates=0)
        self.compile(case, partial(direction, form), partial(direction, as_torch))

    def compile(self, case: Case, infer: Callable[..., Any], train: Callable[..., Any]) -> None:
        """Of the functions that run a direction, in inference and in training."""
        self.run = jax.jit(partial(stack, infer, case.directions))
        run = partial(stack, train, case.directions)
        self.vjp = jax.jit(lambda primals, cotangents: jax.vjp(run, *primals)[1](cotangents))

    def infer(self) -> Any:
        return jax.block_until_ready(self.run(*self.arguments))

    def answer(self, result: Any) -> Arrays:
        output, *finals = map(np.asarray, result)
        return answer(output, finals)

    def train(self) -> Any:
        return jax.block_until_ready(self.vjp(self.primals, self.cotangents))

    def gradients(self, result: Any) -> Arrays:
        weights, x, states = result
        names = ("x", *(f"{name}_0" for name in self.states), *self.names)
        return dict(zip(names, map(np.asarray, (x, *states, *weights)), strict=True))


class JaxPackage(JaxScan):
    """``elman.jax``'s functions in the scan's place: the lengths as they are."""

    def prepare(self, case: Case, inputs: Inputs, threads: int) -> None:
        elman.set_num_threads(threads)
        layer = getattr(elman.jax, case.kind.lower())
        options = {**case.own_options, "lengths": inputs.lengths}

        def run(w: list[Any], x: Any, state: State, reverse: bool) -> Any:
            weights = dict(zip(WEIGHTS, w, strict=False))
            output, final = layer(weights, x, whole(state), reverse=reverse, **options)
            return output, parts(final)

        self.compile(case, run, run)
