"""``torch.nn``: padded input, and packed where rows have lengths."""

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman.torch
from elman.torch.operators import run_scan

from ..grid import Case, Inputs
from . import Arrays, LeftOutError, answer, parts, whole


class Padded:
    """``torch.nn.GRU``, ``LSTM``, which is oneDNN's, or ``RNN``."""

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
        options |= self.check(case)
        torch.set_num_threads(threads)

        def tensor(a: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(a.astype(dtype))

        layer = getattr(self.layers, case.kind)
        options |= {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
        self.layer = layer(case.D, case.H, **options)
        self.given = {"x": tensor(inputs.x)}
        self.given |= {f"{name}_0": tensor(a) for name, a in inputs.states.items()}
        self.layer.to(self.given["x"].dtype)
        self.layer.load_state_dict({name: tensor(a) for name, a in inputs.weights.items()})
        self.lengths = None if inputs.lengths is None else torch.from_numpy(inputs.lengths)
        self.cotangents = [tensor(a) for a in (inputs.d_output, *inputs.d_states.values())]
        self.inputs = {name: t.clone().requires_grad_() for name, t in self.given.items()}
        self.leaves = self.inputs | dict(self.layer.named_parameters())

    def check(self, case: Case) -> dict[str, bool]:
        """What the class has to be told; raises where it has no such thing."""
        if case.resets_before:
            raise LeftOutError("has no such GRU")
        if case.lengths:
            # Its h_n would be the state after the padding, its reverse direction would start there.
            raise LeftOutError("takes no lengths unless packed")
        return {}

    def run(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Output and the final states."""
        output, final = self.layer(x, whole(states))
        return output, *parts(final)

    @torch.inference_mode()
    def infer(self) -> Any:
        return self.run(*self.given.values())

    def answer(self, result: Any) -> Arrays:
        output, *finals = (t.numpy() for t in result)
        return answer(output, finals)

    def train(self) -> Any:
        for leaf in self.leaves.values():
            leaf.grad = None
        torch.autograd.backward(self.run(*self.inputs.values()), self.cotangents)

    def gradients(self, result: Any) -> Arrays:
        return {name: leaf.grad.numpy() for name, leaf in self.leaves.items()}


class Packed(Padded):
    """The same on packed sequences, where rows have lengths."""

    def check(self, case: Case) -> dict[str, bool]:
        if case.resets_before:
            raise LeftOutError("has no such GRU")
        if not case.lengths:
            raise LeftOutError("the case has no lengths")
        return {}

    def run(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packed = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        output, final = self.layer(packed, whole(states))
        return pad_packed_sequence(output, total_length=len(x))[0], *parts(final)


class Loop(Padded):
    """Elman's loop on torch's operators, where torch has no layer: not measured, but right."""

    layers = elman.torch

    def check(self, case: Case) -> dict[str, bool]:
        return case.own_options

    def run(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (h_0,), weights = states, list(self.layer.parameters())
        each, finals = 4 * (2 if self.layer.bidirectional else 1), []
        for k in range(self.layer.num_layers):
            own = weights[k * each : (k + 1) * each]
            arguments = [w for i in range(0, each, 4) for w in (*own[i : i + 4], None)]
            arguments += [None] * (10 - len(arguments))
            first = h_0[len(finals) : len(finals) + each // 4]
            x, last = run_scan("gru_reset_before", x, first, *arguments, self.lengths, None, None)
            finals += [*last]
        return x, torch.stack(finals)
