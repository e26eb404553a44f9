"""Train the detector on recordings that are made up anew at each step."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .detector import FRAME, Detector
from .speech import RATE, WORDS, Clip, Said, recording

ROWS, SECONDS = 32, 6.144
LENGTH = round(SECONDS * RATE) // FRAME
UNASKED = -100  # what cross_entropy passes over
WEIGHTS = torch.tensor([1.0] + [1.5] * len(WORDS))  # frames of words are few


def train(
    spoken: list[Clip], steps: int, after_step: Callable[[], None]
) -> tuple[Detector, list[float]]:
    """The trained detector, and the loss of each step."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    detector = Detector()
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    losses = []
    for _ in range(steps):
        rows = [recording(rng, spoken, SECONDS) for _ in range(ROWS)]
        samples = torch.from_numpy(np.stack([samples for samples, _ in rows]))
        wanted = torch.from_numpy(np.stack([targets(said) for _, said in rows], 1))
        loss = cross_entropy(detector(samples).flatten(0, 1), wanted.flatten(), WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        after_step()
    return detector.eval(), losses


def targets(said: list[Said]) -> np.ndarray:
    """The class of each frame: a word for 0.2 s from its end on; before that nothing is asked."""
    classes = np.zeros(LENGTH, np.int64)
    for word, start, end in said:
        if word in WORDS:
            middle, last = (start + end) // 2 // FRAME, end // FRAME
            classes[middle:last] = UNASKED
            classes[last : last + RATE // 5 // FRAME] = 1 + WORDS.index(word)
    return classes
