"""A detector that needs NumPy alone: a GRU as it was drawn, and a linear head fitted to it.

What a GRU of random weights makes of a signal is rich enough for a linear head to tell a knock from
a hum (an echo state network), so that nothing has to be trained by gradients.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import elman

from .recordings import CHANNELS


def fit(recordings: Sequence[np.ndarray], fails: Sequence[bool], folder: Path) -> None:
    """Fit the head to labelled recordings, and save the model."""
    gru = elman.GRU(CHANNELS, 48, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    x = features(gru, recordings)
    mean, scale = x.mean(0), x.std(0)
    x = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    target = np.where(fails, 1.0, -1.0)
    head = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ target)
    gru.save(folder / "gru.safetensors")
    np.savez(folder / "head.npz", mean=mean, scale=scale, weight=head[:-1], bias=head[-1])


def score(recordings: Sequence[np.ndarray], folder: Path) -> np.ndarray:
    """Above 0 where a bearing fails: (N), the same bits in whatever company."""
    gru = elman.load(folder / "gru.safetensors")
    head = np.load(folder / "head.npz")
    x = (features(gru, recordings) - head["mean"]) / head["scale"]
    # A sum a row: a product of matrices may round a row by what others there are.
    return (x * head["weight"]).sum(1) + head["bias"]


def features(gru: elman.GRU, recordings: Sequence[np.ndarray]) -> np.ndarray:
    """The mean square of each unit's change from step to step, (N, H), in float64."""
    lengths = np.array([len(x) for x in recordings])
    batch = np.zeros((lengths.max(), len(recordings), CHANNELS), "float32")
    for n, x in enumerate(recordings):
        batch[: len(x), n] = x
    output, _ = gru(batch, lengths=lengths)
    change = np.diff(output, axis=0).astype("float64")
    change[lengths[lengths < len(output)] - 1, lengths < len(output)] = 0  # into the padding
    return (change**2).sum(0) / (lengths - 1)[:, None]
