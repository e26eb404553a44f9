"""``torch.nn``: padded input, and packed where rows have lengths."""

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..grid import Case, Inputs
from . import Arrays, LeftOutError


class Padded:
    """``torch.nn.GRU`` or ``RNN``."""

    can_train = True
    compiles = False
    layers: Any = torch.nn

    def __init__(
        self,
        case: Case,
        inputs: Inputs,
        threads: int,
        dtype: np.dtype | type = np.float32,
        **options: Any,
    ) -> None:
        self.check(case)
        torch.set_num_threads(threads)

        def tensor(a: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(a.astype(dtype))

        layer = getattr(self.layers, case.cell)
        options |= {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
        self.layer = layer(case.D, case.H, **options)
        self.x, self.h_0 = tensor(inputs.x), tensor(inputs.h_0)
        self.layer.to(self.x.dtype)
        self.layer.load_state_dict({name: tensor(a) for name, a in inputs.weights.items()})
        self.lengths = None if inputs.lengths is None else torch.from_numpy(inputs.lengths)
        self.cotangents = [tensor(a) for a in (inputs.d_output, inputs.d_h_n)]
        self.leaves = {name: t.clone() for name, t in (("x", self.x), ("h_0", self.h_0))}
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        self.leaves |= dict(self.layer.named_parameters())

    def check(self, case: Case) -> None:
        if case.lengths:
            # Its h_n would be the state after the padding, its reverse direction would start there.
            raise LeftOutError("takes no lengths unless packed")

    def run(self, x: torch.Tensor, h_0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x, h_0)

    @torch.inference_mode()
    def infer(self) -> Any:
        return self.run(self.x, self.h_0)

    def answer(self, result: Any) -> Arrays:
        return dict(zip(("output", "h_n"), (t.numpy() for t in result), strict=True))

    def train(self) -> Any:
        for leaf in self.leaves.values():
            leaf.grad = None
        torch.autograd.backward(self.run(self.leaves["x"], self.leaves["h_0"]), self.cotangents)

    def gradients(self, result: Any) -> Arrays:
        return {name: leaf.grad.numpy() for name, leaf in self.leaves.items()}


class Packed(Padded):
    """The same on packed sequences, where rows have lengths."""

    def check(self, case: Case) -> None:
        if not case.lengths:
            raise LeftOutError("the case has no lengths")

    def run(self, x: torch.Tensor, h_0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        packed = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        output, h_n = self.layer(packed, h_0)
        return pad_packed_sequence(output, total_length=len(x))[0], h_n
