"""Python's own manual as characters, and what a table of their neighbours makes of it."""

from collections import Counter
from pydoc_data.topics import topics

import numpy as np

OTHER = "\N{REPLACEMENT CHARACTER}"  # the few quotation marks and dashes that are not ASCII
HELD_OUT = 10  # one part of so many, the last, is not trained on
ORDER = 3  # characters that the table sees at a time, the next among them


def read() -> str:
    """The pages that ``help("topics")`` lists, each paragraph once."""
    pages = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = dict.fromkeys(pages.split("\n\n"))  # pages quote one another
    return "".join(c if c.isascii() else OTHER for c in "\n\n".join(paragraphs))


def split(text: str) -> tuple[str, str]:
    """What is learnt, and what is held out."""
    first = len(text) - len(text) // HELD_OUT
    return text[:first], text[first:]


def numbers(text: str, alphabet: str) -> np.ndarray:
    """Each character's place in the alphabet."""
    places = {c: n for n, c in enumerate(alphabet)}
    return np.array([places[c] for c in text])


def table_bits(learnt: str, text: str, order: int = ORDER) -> float:
    """Bits a character of `text` by a table of what follows the `order` - 1 characters before.

    What the table has never seen it leaves to that of one character less, as often as it has met
    something new there: Witten and Bell, "The zero-frequency problem", IEEE Transactions on
    Information Theory 37 (1991).
    """
    alphabet = len(set(learnt + text))
    chance = np.full(len(text), 1 / alphabet)
    for length in range(order):  # of the context
        seen = Counter(learnt[n : n + length + 1] for n in range(len(learnt) - length))
        contexts, kinds = Counter(), Counter()
        for gram, count in seen.items():
            contexts[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        for n in range(length, len(text)):
            gram = text[n - length : n + 1]
            total, new = contexts[gram[:-1]], kinds[gram[:-1]]
            if total:
                chance[n] = (seen[gram] + new * chance[n]) / (total + new)
    return float(-np.log2(chance).mean())
