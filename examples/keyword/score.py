"""How often the detector is right."""

from typing import NamedTuple

import numpy as np

from .detector import FRAME, heard
from .speech import RATE, WORDS, Said

LATE = 0.4  # seconds after its end in which a word may be heard


class Score(NamedTuple):
    """What was heard of what was said.

    Attributes
    ----------
    confusion : (1 + words, 1 + words), counts of words: what was said, what was heard, of which
        the first are another word, and nothing.
    unsaid : how often a word was heard where none was said, or a second time.
    """

    confusion: np.ndarray
    unsaid: int

    @property
    def accuracy(self) -> float:
        """Of the words to be detected, the share that was heard as what it is."""
        right = np.diag(self.confusion)[1:]
        return float(right.sum() / self.confusion[1:].sum())

    @property
    def false_alarms(self) -> int:
        """How often a word was heard that was not said."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        return int(wrong[:, 1:].sum()) + self.unsaid


def score(classes: np.ndarray, said: list[Said]) -> Score:
    """Of a recording: each word takes the first event from its beginning to LATE after its end."""
    size = 1 + len(WORDS)
    confusion, events = np.zeros((size, size), int), heard(classes)
    for word, start, end in said:
        within = [e for e in events if start <= e[0] * FRAME < end + LATE * RATE]
        if within:
            events.remove(within[0])
        of = 1 + WORDS.index(word) if word in WORDS else 0
        confusion[of, within[0][1] if within else 0] += 1
    return Score(confusion, len(events))
