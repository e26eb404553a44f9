"""Train an LSTM to guess the next character."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import elman.torch

EMBEDDED, HIDDEN = 32, 192
ROWS = 32  # places of the text that are read side by side
STEPS = 64  # of backpropagation; the states are carried over


class Writer(nn.Module):
    """Characters (L, N) to the scores of the next ones (L, N, alphabet), and the states."""

    def __init__(self, alphabet: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, EMBEDDED)
        self.lstm = elman.torch.LSTM(EMBEDDED, HIDDEN)
        self.head = nn.Linear(HIDDEN, alphabet)

    def forward(
        self, characters: Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, states = self.lstm(self.embedding(characters), states)
        return self.head(output), states


def train(
    learnt: np.ndarray,
    held_out: np.ndarray,
    alphabet: int,
    epochs: int,
    after_chunk: Callable[[], None],
) -> tuple[Writer, list[float], list[float]]:
    """The trained model, and the bits a character of each epoch: as learnt, and held out."""
    torch.manual_seed(0)
    model = Writer(alphabet)
    optimizer = torch.optim.Adam(model.parameters())
    parts = chunks(learnt)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, epochs * len(parts))
    losses, bits = [], []
    for _ in range(epochs):
        states, total = None, 0.0
        for characters, following in parts:
            scores, states = model(characters, states)
            states = tuple(state.detach() for state in states)
            loss = cross_entropy(scores.flatten(0, 1), following.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() / len(parts) / math.log(2)
            after_chunk()
        losses.append(total)
        bits.append(evaluate(model, held_out))
    return model.eval(), losses, bits


def chunks(text: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """The text in rows, cut into pieces of STEPS: characters, and those that follow them."""
    length = (len(text) - 1) // ROWS
    characters, following = (
        torch.from_numpy(text[first : first + ROWS * length]).reshape(ROWS, length).T
        for first in (0, 1)
    )
    return list(zip(characters.split(STEPS), following.split(STEPS), strict=True))


@torch.no_grad()
def evaluate(model: Writer, text: np.ndarray) -> float:
    """Bits a character, read once from the beginning to the end."""
    whole = torch.from_numpy(text)
    scores, _ = model(whole[:-1, None])
    return cross_entropy(scores[:, 0], whole[1:]).item() / math.log(2)
