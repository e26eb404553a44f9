"""The Japanese Vowels recordings as padded NumPy arrays."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).with_name("japanese_vowels.npz")
CHANNELS = 12
SPEAKERS = 9


class Utterances(NamedTuple):
    """Recordings of different lengths in one array."""

    frames: np.ndarray  # (utterances, longest, 12) float32, zeros past each utterance's end
    lengths: np.ndarray  # (utterances,) int64, how many frames are real
    speakers: np.ndarray  # (utterances,) int64, 0 to 8


def load() -> tuple[Utterances, Utterances]:
    """Return the 270 utterances to train on and the 370 to test on, standardised."""
    with np.load(FILE, allow_pickle=False) as file:
        frames, lengths, speakers, split = (
            file[name] for name in ("frames", "lengths", "speakers", "split")
        )
    train = split == "train"
    known = frames[np.repeat(train, lengths)]  # the test set must not shape its own scale
    padded = pad((frames - known.mean(axis=0)) / known.std(axis=0), lengths)
    lengths, speakers = lengths.astype(np.int64), speakers.astype(np.int64) - 1
    return (
        Utterances(padded[train], lengths[train], speakers[train]),
        Utterances(padded[~train], lengths[~train], speakers[~train]),
    )


def pad(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Lay utterances stored end to end (frames, 12) out as (utterances, longest, 12)."""
    padded = np.zeros((len(lengths), lengths.max(), frames.shape[1]), frames.dtype)
    padded[np.arange(lengths.max()) < lengths[:, None]] = frames
    return padded
