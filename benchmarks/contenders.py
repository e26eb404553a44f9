"""Who is measured: each way to run a case, forward alone and forward with backward.

A contender is built from a case and its inputs, holds the same weights as the others, and offers
``infer()``, which returns the output, and ``train()``, which runs forward and backward and returns
the gradient of the first layer's weight_ih. Gradients of the weights are computed, that of x is
not, as in training on data.
"""

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman
import elman.torch

from .grid import Case, Inputs


def stock_layer(case: Case, dtype: torch.dtype = torch.float32) -> torch.nn.RNNBase:
    """torch's own layer, whose weights all contenders share."""
    torch.manual_seed(0)
    layer = getattr(torch.nn, case.cell)
    options = {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
    return layer(case.D, case.H, **options).to(dtype)


class Torch:
    """``torch.nn``: padded input, or packed where the case has lengths."""

    name = "torch.nn"
    can_train = True

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.layer = self.make_layer(case)
        self.x = torch.from_numpy(inputs.x)
        self.lengths = None if inputs.lengths is None else torch.from_numpy(inputs.lengths)
        self.d_output = torch.from_numpy(inputs.d_output)

    def make_layer(self, case: Case) -> torch.nn.RNNBase:
        return stock_layer(case)

    def run(self) -> torch.Tensor:
        if self.lengths is None:
            return self.layer(self.x)[0]
        packed = pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0])[0]

    @torch.inference_mode()
    def infer(self) -> np.ndarray:
        return self.run().numpy()

    def train(self) -> np.ndarray:
        self.layer.zero_grad()
        self.run().backward(self.d_output)
        return self.layer.weight_ih_l0.grad.numpy()


class ElmanTorch(Torch):
    """``elman.torch``: the lengths as they are."""

    name = "elman.torch"

    def make_layer(self, case: Case) -> torch.nn.RNNBase:
        layer = stock_layer(case)
        elman.torch.accelerate(layer)
        return layer

    def run(self) -> torch.Tensor:
        return self.layer(self.x, lengths=self.lengths)[0]


class ElmanNumpy:
    """The NumPy door: weights loaded once."""

    name = "elman"
    can_train = False

    def __init__(self, case: Case, inputs: Inputs) -> None:
        layer = getattr(elman, case.cell)
        self.layer = layer(
            case.D, case.H, num_layers=case.num_layers, bidirectional=case.bidirectional
        )
        weights = stock_layer(case).state_dict()
        self.layer.load_state_dict({name: w.numpy() for name, w in weights.items()})
        self.inputs = inputs

    def infer(self) -> np.ndarray:
        return self.layer(self.inputs.x, lengths=self.inputs.lengths)[0]


class Mlx:
    """``mlx.nn``, which has one layer, one direction, and no lengths."""

    name = "mlx.nn"
    can_train = True

    def __init__(self, case: Case, inputs: Inputs) -> None:
        import mlx.core as mx
        import mlx.nn as nn

        weights = {name: w.numpy() for name, w in stock_layer(case).state_dict().items()}
        converted = elman.weights.convert(weights, source="torch", target="mlx")
        self.mx, self.layer = mx, self.make_layer(nn, case)
        self.layer.update({name: mx.array(w) for name, w in converted.items()})
        self.x, self.d_output = (mx.array(a.swapaxes(0, 1)) for a in (inputs.x, inputs.d_output))
        self.gradients = nn.value_and_grad(
            self.layer, lambda x: (self.layer(x) * self.d_output).sum()
        )

    def make_layer(self, nn, case: Case):
        return getattr(nn, case.cell)(case.D, case.H)

    def infer(self) -> np.ndarray:
        self.layer.eval()
        output = self.layer(self.x)
        self.mx.eval(output)
        return np.asarray(output).swapaxes(0, 1)

    def train(self) -> np.ndarray:
        self.layer.train()
        _, gradients = self.gradients(self.x)
        self.mx.eval(gradients)
        return np.asarray(gradients["Wx" if "Wx" in gradients else "Wxh"])


class ElmanMlx(Mlx):
    """``elman.mlx``."""

    name = "elman.mlx"

    def make_layer(self, nn, case: Case):
        import elman.mlx

        layer = super().make_layer(nn, case)
        elman.mlx.accelerate(layer)
        return layer


#: Each framework's own layer, and Elman's doors that stand in for it.
AGAINST = {"torch": [Torch, ElmanNumpy, ElmanTorch], "mlx": [Mlx, ElmanMlx]}


class Float64(Torch):
    """The answer that the others are held against: torch's layer in float64."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        super().__init__(case, inputs)
        self.x, self.d_output = self.x.double(), self.d_output.double()

    def make_layer(self, case: Case) -> torch.nn.RNNBase:
        return stock_layer(case, torch.float64)


def check(case: Case, contenders: list, inputs: Inputs) -> None:
    """Raise unless every contender computes the case's answer."""
    right = Float64(case, inputs)
    output, gradient = right.infer(), None
    for contender in contenders:
        compare(contender.name, contender.infer(), output, case)
        if contender.can_train:
            gradient = right.train() if gradient is None else gradient
            compare(contender.name, contender.train(), gradient, case)


def compare(name: str, got: np.ndarray, expected: np.ndarray, case: Case) -> None:
    """Raise unless `got` is what float32 gives: long sums differ by more than a rounding."""
    error = np.abs(got - expected).max() / np.abs(expected).max()
    if not error < 1e-4:
        raise AssertionError(f"{name} on {case}: relative error {error:.1e}")
