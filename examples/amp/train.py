"""Train an LSTM to do what the amplifier does."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import elman.torch

HIDDEN = 20
ROWS = 32  # pieces of the recording that are heard side by side
STEPS = 500  # of backpropagation; the states are carried over


class Amp(nn.Module):
    """An LSTM and a linear head: x (L, N, 1) to (L, N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = elman.torch.LSTM(1, HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(
        self, x: Tensor, states: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, states = self.lstm(x, states)
        return self.head(output), states


def train(
    x: np.ndarray, y: np.ndarray, epochs: int, after_epoch: Callable[[], None]
) -> tuple[Amp, list[float]]:
    """The trained model, and the error of each epoch as a share of the signal's power."""
    torch.manual_seed(0)
    model = Amp()
    optimizer = torch.optim.Adam(model.parameters())
    heard, wanted = (rows(a) for a in (x, y))
    chunks = list(zip(heard.split(STEPS), wanted.split(STEPS), strict=True))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * len(chunks))
    losses = []
    for _ in range(epochs):
        states, total = None, 0.0
        for inputs, targets in chunks:
            output, states = model(inputs, states)
            states = tuple(state.detach() for state in states)
            loss = (output - targets).square().mean() / wanted.square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() / len(chunks)
        losses.append(total)
        after_epoch()
    return model.eval(), losses


def rows(a: np.ndarray) -> Tensor:
    """A recording cut into rows, (L, N, 1)."""
    length = len(a) // ROWS
    return torch.from_numpy(a[: length * ROWS]).reshape(ROWS, length).T[:, :, None].contiguous()
