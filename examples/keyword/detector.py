"""The detector: samples in, frame by frame, and out the probability of each word."""

import numpy as np
import torch
from torch import Tensor, nn

import elman.export
import elman.torch

from .speech import RATE, WORDS

FRAME = 128  # samples of a step, 16 ms
BANDS = 20
HIDDEN = 32  # of each of two layers
GAINS = (20.0, 150.0, 1000.0)  # sounds of any loudness are seen


class Detector(nn.Module):
    """From samples to classes, of which the first is no word.

    All of it is layers that `elman.export` knows, so that the header takes samples as they are: a
    filter bank is a convolution over two frames, loudness of a band its rectified three phases,
    and tanh does what a logarithm does elsewhere. The bank is fixed, and the rest learnt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Conv1d(FRAME, 3 * BANDS, 2, padding=1, bias=False)
        self.loudness = nn.Linear(3 * BANDS, BANDS, bias=False)
        self.compress = nn.Linear(BANDS, len(GAINS) * BANDS)
        self.gru = elman.torch.GRU(len(GAINS) * BANDS, HIDDEN, 2)
        self.head = nn.Linear(HIDDEN, 1 + len(WORDS))
        self.bank.weight = nn.Parameter(torch.from_numpy(bank()), requires_grad=False)
        phases = torch.eye(BANDS).repeat(1, 3)
        self.loudness.weight = nn.Parameter(phases, requires_grad=False)
        with torch.no_grad():
            self.compress.weight.copy_(torch.cat([gain * torch.eye(BANDS) for gain in GAINS]))
            self.compress.bias.zero_()

    def forward(self, samples: Tensor) -> Tensor:
        """Samples (N, L * FRAME) to the classes' logits (L, N, 1 + words)."""
        frames = samples.unflatten(1, (-1, FRAME)).mT
        phases = self.bank(frames)[:, :, :-1].permute(2, 0, 1)
        loudness = self.loudness(torch.relu(phases))
        output, _ = self.gru(torch.tanh(self.compress(loudness)))
        return self.head(output)

    def model(self) -> elman.export.Model:
        """All of it as a model to be exported."""
        before = [self.bank, nn.ReLU(), self.loudness, self.compress, nn.Tanh()]
        return elman.export.from_torch(
            nn.Sequential(*before, self.gru, self.head, nn.Softmax(dim=-1))
        )


def bank() -> np.ndarray:
    """A wave in a window for each band and each of three phases, (3 * BANDS, FRAME, 2 frames).

    Of phases a third of a turn apart, what is above zero sums to 0.87 to 1 times the amplitude in
    the band, wherever in the wave a frame begins, as a three-phase rectifier has it.
    """
    mel = np.linspace(*(np.log1p(f / 700) for f in (120, 3700)), BANDS)
    turns = 700 * np.expm1(mel)[:, None] * np.arange(2 * FRAME) / RATE
    phases = np.arange(3)[:, None, None] / 3
    waves = np.cos(2 * np.pi * (turns + phases)) * np.hanning(2 * FRAME) * 2 / FRAME
    return waves.reshape(3 * BANDS, 2, FRAME).swapaxes(1, 2).astype(np.float32)


def heard(classes: np.ndarray) -> list[tuple[int, int]]:
    """Frames at which a word becomes the likeliest class, and which it is; classes is (L, P)."""
    best = classes.argmax(1)
    begins = np.flatnonzero((best > 0) & (best != np.append(0, best[:-1])))
    return [(int(frame), int(best[frame])) for frame in begins]
