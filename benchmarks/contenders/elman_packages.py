"""Elman's packages, each used as its framework's users would."""

from typing import Any

import torch

import elman
import elman.torch

from ..grid import Case, Inputs
from . import Arrays, answer, parts, torch_layers, whole


class NumpyPackage:
    """``elman.GRU``, ``LSTM`` or ``RNN`` on NumPy arrays, weights loaded once."""

    can_train = True
    compiles = False

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        elman.set_num_threads(threads)
        layer = getattr(elman, case.kind)
        options = {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
        self.layer = layer(case.D, case.H, **options, **case.own_options)
        self.layer.load_state_dict(inputs.weights)
        self.inputs = inputs
        self.state, self.d_final = whole(inputs.states.values()), whole(inputs.d_states.values())

    def infer(self) -> Any:
        return self.layer(self.inputs.x, self.state, lengths=self.inputs.lengths)

    def answer(self, result: Any) -> Arrays:
        output, final = result
        return answer(output, parts(final))

    def train(self) -> Any:
        i = self.inputs
        _, _, vjp = self.layer.vjp(i.x, self.state, lengths=i.lengths)
        return vjp(i.d_output, self.d_final)

    def gradients(self, result: Any) -> Arrays:
        return result


class TorchPackage(torch_layers.Padded):
    """``elman.torch.GRU``, ``LSTM`` or ``RNN``: the lengths as they are."""

    layers = elman.torch

    def check(self, case: Case) -> dict[str, bool]:
        return case.own_options

    def run(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, final = self.layer(x, whole(states), lengths=self.lengths)
        return output, *parts(final)
