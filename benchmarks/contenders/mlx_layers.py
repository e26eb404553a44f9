"""``mlx.nn`` on the CPU, which has one layer, one direction, and no lengths."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import elman.mlx
from elman.weights import convert

from ..grid import Case, Inputs
from . import Arrays, LeftOutError


class MlxLayer:
    """``mlx.nn.GRU`` or ``RNN``."""

    can_train = True
    compiles = False
    layers: Any = nn

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        if case.num_layers > 1 or case.bidirectional or case.lengths:
            raise LeftOutError("has one layer, one direction, no lengths")
        mx.set_default_device(mx.cpu)
        self.gru = case.cell == "GRU"
        self.layer = getattr(self.layers, case.cell)(case.D, case.H)
        weights = convert(inputs.weights, source="torch", target="mlx")
        self.names = list(weights)
        x, d_output = (np.swapaxes(a, 0, 1) for a in (inputs.x, inputs.d_output))
        arrays = (x, inputs.h_0[0], *weights.values())
        self.primals = [mx.array(np.ascontiguousarray(a)) for a in arrays]
        d_output = d_output.copy()
        d_output[:, -1] += inputs.d_h_n[0]  # h_n is the last of the output
        self.d_output = mx.array(d_output)
        mx.eval(self.primals, self.d_output)

    def run(self, x: mx.array, h_0: mx.array, *weights: mx.array) -> list[mx.array]:
        self.layer.update(dict(zip(self.names, weights, strict=True)))
        return [self.layer(x, h_0)]

    def infer(self) -> Any:
        (output,) = self.run(*self.primals)
        mx.eval(output)
        return output

    def answer(self, result: Any) -> Arrays:
        output = np.asarray(result).swapaxes(0, 1)
        return {"output": output, "h_n": output[-1:]}

    def train(self) -> Any:
        _, gradients = mx.vjp(self.run, self.primals, [self.d_output])
        mx.eval(gradients)
        return gradients

    def gradients(self, result: Any) -> Arrays:
        x, h_0, *rest = (np.asarray(a) for a in result)
        arrays: Arrays = dict(zip(self.names, rest, strict=True))
        names = ("Wx", "Wh", "b") if self.gru else ("Wxh", "Whh", "bias")
        weight_ih, weight_hh, bias = (arrays[name] for name in names)
        bias_hh = bias.copy()  # what is added to the same sum has the same gradient
        if self.gru:
            bias_hh[-len(arrays["bhn"]) :] = arrays["bhn"]
        return {
            "x": x.swapaxes(0, 1),
            "h_0": h_0[None],
            "weight_ih_l0": weight_ih,
            "weight_hh_l0": weight_hh,
            "bias_ih_l0": bias,
            "bias_hh_l0": bias_hh,
        }


class MlxDoor(MlxLayer):
    """``elman.mlx.GRU`` or ``RNN``."""

    layers = elman.mlx
