"""Elman's doors, each used as its framework's users would."""

from typing import Any

import torch

import elman
import elman.torch

from ..grid import Case, Inputs
from . import Arrays, torch_layers


class NumpyDoor:
    """``elman.GRU`` or ``RNN`` on NumPy arrays, weights loaded once."""

    can_train = True
    compiles = False

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None:
        elman.set_num_threads(threads)
        layer = getattr(elman, case.cell)
        self.layer = layer(
            case.D, case.H, num_layers=case.num_layers, bidirectional=case.bidirectional
        )
        self.layer.load_state_dict(inputs.weights)
        self.inputs = inputs

    def infer(self) -> Any:
        return self.layer(self.inputs.x, self.inputs.h_0, lengths=self.inputs.lengths)

    def answer(self, result: Any) -> Arrays:
        return dict(zip(("output", "h_n"), result, strict=True))

    def train(self) -> Any:
        i = self.inputs
        _, _, vjp = self.layer.vjp(i.x, i.h_0, lengths=i.lengths)
        return vjp(i.d_output, i.d_h_n)

    def gradients(self, result: Any) -> Arrays:
        return result


class TorchDoor(torch_layers.Padded):
    """``elman.torch.GRU`` or ``RNN``: the lengths as they are."""

    layers = elman.torch

    def check(self, case: Case) -> None:
        """Nothing is left out."""

    def run(self, x: torch.Tensor, h_0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x, h_0, lengths=self.lengths)
