"""Train a classifier with packed sequences, and again with lengths: the same losses, two times.

Sequences of 20 to 200 noisy steps are told apart by which of their features is raised. The two
trainings start from the same weights and see the same batches in the same order.

Example:
    python -m examples.packing
"""

import argparse
import time

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman.torch

FEATURES, HIDDEN, LONGEST, BATCH = 8, 64, 200, 32


class Packing(nn.Module):
    """torch.nn.GRU: the batch is packed, and its output padded again."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * HIDDEN, FEATURES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits for x (N, L, D)."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.gru(packed)
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
        return self.linear(output.sum(1) / lengths[:, None])


class Lengths(nn.Module):
    """elman.torch.GRU: it takes the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = elman.torch.GRU(FEATURES, HIDDEN, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * HIDDEN, FEATURES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits for x (N, L, D)."""
        output, _ = self.gru(x, lengths=lengths)
        return self.linear(output.sum(1) / lengths[:, None])


def main() -> None:
    """Train twice and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    seconds, losses = {}, {}
    for make in (Packing, Lengths):
        train(make, 2)  # warm
        start = time.perf_counter()
        losses[make] = train(make, args.steps, make.__doc__.partition(":")[0])
        seconds[make] = time.perf_counter() - start
    difference = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"first and last loss {losses[Lengths][0]:.4f}, {losses[Lengths][-1]:.4f}")
    print(f"greatest difference between the two {difference:.1e}")
    print(f"packing {seconds[Packing]:.2f} s, lengths {seconds[Lengths]:.2f} s")


def train(make: type[nn.Module], steps: int, label: str = "") -> list[float]:
    """Train a new model; return the loss of each step."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in track(range(steps), label, disable=not label):
        x, lengths, wanted = draw()
        loss = F.cross_entropy(model(x, lengths), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch: x (N, L, D), lengths (N,), and which feature is raised (N,)."""
    lengths = torch.randint(20, LONGEST + 1, (BATCH,))
    wanted = torch.randint(FEATURES, (BATCH,))
    x = torch.randn(BATCH, LONGEST, FEATURES)
    x[torch.arange(BATCH), :, wanted] += 0.5
    x *= (torch.arange(LONGEST) < lengths[:, None])[..., None]
    return x, lengths, wanted


if __name__ == "__main__":
    main()
