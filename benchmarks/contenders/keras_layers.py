"""Keras on JAX, for the GRU that has no layer elsewhere: ``reset_after=False``, jitted."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from elman.weights import convert

from ..grid import Case, Inputs
from . import LeftOutError


class KerasOnJax:
    """``keras.layers.GRU``, batch first, and its jitted vjp."""

    can_train = compiles = True

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        if not case.resets_before:
            raise LeftOutError("is JAX's scan: measured where few have the layer")
        if case.num_layers > 1 or case.bidirectional or case.lengths:
            raise LeftOutError("has one layer, one direction, no lengths")
        layer = keras.layers.GRU(
            case.H, reset_after=False, return_sequences=True, return_state=True
        )
        x = np.ascontiguousarray(inputs.x.swapaxes(0, 1))
        layer.build(x.shape)
        (self.forms,) = (convert(inputs.weights, "elman", "keras", reset_after=False),)
        weights = list(self.forms.values())
        self.primals = (
            [jnp.asarray(a) for a in weights],
            jnp.asarray(x),
            jnp.asarray(*inputs.states["h"]),
        )
        d_output = inputs.d_output.swapaxes(0, 1)
        self.cotangents = jnp.asarray(d_output), jnp.asarray(*inputs.d_states["h"])

        def run(weights: list[Any], x: Any, h_0: Any) -> Any:
            (output, h_n), _ = layer.stateless_call(weights, [], x, initial_state=h_0)
            return output, h_n

        self.run = jax.jit(run)
        self.vjp = jax.jit(lambda primals, d: jax.vjp(run, *primals)[1](d))
