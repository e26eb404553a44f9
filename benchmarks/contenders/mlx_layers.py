"""``mlx.nn`` on the CPU, which has one layer, one direction, and no lengths."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import elman.mlx
from elman.weights import convert

from ..grid import Case, Inputs
from . import Arrays, LeftOutError, answer, parts


class MlxLayer:
    """``mlx.nn.GRU``, ``LSTM`` or ``RNN``, which return the states of every step."""

    can_train = True
    compiles = False
    layers: Any = nn

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        if case.num_layers > 1 or case.bidirectional or case.lengths:
            raise LeftOutError("has one layer, one direction, no lengths")
        if case.resets_before and self.layers is nn:
            raise LeftOutError("has no such GRU")
        mx.set_default_device(mx.cpu)
        self.states = case.states
        options = {} if self.layers is nn else case.own_options
        self.layer = getattr(self.layers, case.kind)(case.D, case.H, **options)
        weights = convert(inputs.weights, source="torch", target="mlx")
        self.names = list(weights)
        x, d_output = (np.swapaxes(a, 0, 1) for a in (inputs.x, inputs.d_output))
        arrays = (x, *(a[0] for a in inputs.states.values()), *weights.values())
        self.primals = [mx.array(np.ascontiguousarray(a)) for a in arrays]
        # The final states are the last of those of every step, and of those the h are the output.
        d_every = {name: np.zeros_like(d_output) for name in self.states} | {"h": d_output.copy()}
        for name, d in inputs.d_states.items():
            d_every[name][:, -1] += d[0]
        self.d_every = [mx.array(d) for d in d_every.values()]
        mx.eval(self.primals, self.d_every)

    def run(self, x: mx.array, *rest: mx.array) -> list[mx.array]:
        """The states of every step."""
        states, weights = rest[: len(self.states)], rest[len(self.states) :]
        self.layer.update(dict(zip(self.names, weights, strict=True)))
        return list(parts(self.layer(x, *states)))

    def infer(self) -> Any:
        every = self.run(*self.primals)
        mx.eval(every)
        return every

    def answer(self, result: Any) -> Arrays:
        every = [np.asarray(a).swapaxes(0, 1) for a in result]
        return answer(every[0], [a[-1:] for a in every])

    def train(self) -> Any:
        _, gradients = mx.vjp(self.run, self.primals, self.d_every)
        mx.eval(gradients)
        return gradients

    def gradients(self, result: Any) -> Arrays:
        x, *rest = (np.asarray(a) for a in result)
        states, weights = rest[: len(self.states)], rest[len(self.states) :]
        weight_ih, weight_hh, bias, *bhn = weights
        bias_hh = bias.copy()  # what is added to the same sum has the same gradient
        if bhn:  # a GRU's
            bias_hh[-len(bhn[0]) :] = bhn[0]
        return {
            "x": x.swapaxes(0, 1),
            **{f"{name}_0": d[None] for name, d in zip(self.states, states, strict=True)},
            "weight_ih_l0": weight_ih,
            "weight_hh_l0": weight_hh,
            "bias_ih_l0": bias,
            "bias_hh_l0": bias_hh,
        }


class MlxPackage(MlxLayer):
    """``elman.mlx.GRU``, ``LSTM`` or ``RNN``."""

    layers = elman.mlx
