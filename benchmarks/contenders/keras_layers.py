"""Keras on JAX, jitted: measured where few others have the layer, ``GRU(reset_after=False)``."""

import os
from typing import Any

import numpy as np

from elman.weights import convert

from ..grid import Case, Inputs
from . import Arrays, LeftOutError, answer

os.environ["KERAS_BACKEND"] = "jax"  # before it is imported

import jax
import jax.numpy as jnp
import keras


class KerasOnJax:
    """``keras.layers.GRU``, batch first, and its jitted vjp."""

    can_train = compiles = True

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        if not case.resets_before:
            raise LeftOutError("is JAX's scan: measured where few have the layer")
        if case.num_layers > 1 or case.bidirectional or case.lengths:
            raise LeftOutError("has one layer, one direction, no lengths")
        options = {"return_sequences": True, "return_state": True}
        layer = keras.layers.GRU(case.H, reset_after=False, **options)
        x = np.ascontiguousarray(inputs.x.swapaxes(0, 1))
        layer.build(x.shape)
        others = [v.value for v in layer.non_trainable_variables]
        weights = convert(inputs.weights, "elman", "keras", reset_after=False)
        self.names, (h_0,), (d_h_n,) = list(weights), inputs.states["h"], inputs.d_states["h"]
        own = [jnp.asarray(w) for w in weights.values()]
        self.primals = own, jnp.asarray(x), jnp.asarray(h_0)
        d_output = np.ascontiguousarray(inputs.d_output.swapaxes(0, 1))
        self.cotangents = jnp.asarray(d_output), jnp.asarray(d_h_n)

        def run(weights: list[Any], x: Any, h_0: Any) -> Any:
            (output, h_n), _ = layer.stateless_call(weights, others, x, initial_state=h_0)
            return output, h_n

        self.run = jax.jit(run)
        self.vjp = jax.jit(lambda primals, d: jax.vjp(run, *primals)[1](d))

    def infer(self) -> Any:
        return jax.block_until_ready(self.run(*self.primals))

    def answer(self, result: Any) -> Arrays:
        output, h_n = map(np.asarray, result)
        return answer(output.swapaxes(0, 1), [h_n[None]])

    def train(self) -> Any:
        return jax.block_until_ready(self.vjp(self.primals, self.cotangents))

    def gradients(self, result: Any) -> Arrays:
        weights, x, h_0 = result
        own = {name: np.asarray(d) for name, d in zip(self.names, weights, strict=True)}
        by_name = convert(own, "keras", "elman", cell=False)
        by_name["bias_hh_l0"] = by_name["bias_ih_l0"]  # both are summands of Keras's one
        return {"x": np.asarray(x).swapaxes(0, 1), "h_0": np.asarray(h_0)[None], **by_name}
