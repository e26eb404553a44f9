"""Train the classifier in PyTorch, with Elman's GRU or with PyTorch's own."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman.torch

from .answers import Answer
from .data import CHANNELS, SPEAKERS, Utterances

HIDDEN = 64
EPOCHS = 30
BATCH = 30
LEARNING_RATE = 5e-3
NOISE = 0.3  # in standard deviations of the input


class Classifier(nn.Module):
    """GRU, mean over the real frames, linear: frames (N, L, 12) to logits (N, 9).

    The two classes below differ in which GRU they hold and in how they call it, nothing else.
    """

    make_gru: type[nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.gru = self.make_gru(
            CHANNELS, HIDDEN, num_layers=2, bidirectional=True, batch_first=True
        )
        self.linear = nn.Linear(2 * HIDDEN, SPEAKERS)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits."""
        output, _ = self.run_gru(frames, lengths)
        return self.head(output, lengths)

    def head(self, output: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits for the GRU's output, which is zero past each utterance's end."""
        mean = output.sum(dim=1) / lengths[:, None]
        return self.linear(mean)

    def run_gru(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return every step's output (N, L, 128) and the final states (4, N, 64)."""
        raise NotImplementedError


class ElmanClassifier(Classifier):
    """The classifier with Elman's GRU: it takes the lengths as they are."""

    make_gru = elman.torch.GRU

    def run_gru(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.gru(frames, lengths=lengths)


class StockClassifier(Classifier):
    """The classifier with PyTorch's GRU: the batch is packed, and its output padded again."""

    make_gru = nn.GRU

    def run_gru(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        output, h_n = self.gru(packed)
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=frames.shape[1])
        return output, h_n


class Training(NamedTuple):
    """A trained classifier and how it came about."""

    model: Classifier
    losses: list[float]  # one an epoch, the mean over its batches
    seconds: float


def train(
    make_model: Callable[[], Classifier],
    data: Utterances,
    seed: int,
    epochs: int = EPOCHS,
    after_epoch: Callable[[], None] = lambda: None,
) -> Training:
    """Train a new classifier; the seed fixes its weights, the batches and the noise."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs=epochs, steps_per_epoch=-(-len(data.lengths) // BATCH)
    )
    frames, lengths, speakers = map(torch.from_numpy, data)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(lengths)).split(BATCH):
            heard = frames[batch]
            heard = heard + NOISE * torch.randn_like(heard)
            logits = model(heard, lengths[batch])
            loss = F.cross_entropy(logits, speakers[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / len(lengths))
        after_epoch()
    return Training(model.eval(), losses, time.perf_counter() - start)


@torch.inference_mode()
def classify(model: Classifier, data: Utterances) -> Answer:
    """Return the model's answer for all utterances as one batch."""
    frames, lengths, _ = map(torch.from_numpy, data)
    output, h_n = model.run_gru(frames, lengths)
    logits = model.head(output, lengths)
    return Answer(output.numpy(), h_n.numpy(), logits.numpy())
