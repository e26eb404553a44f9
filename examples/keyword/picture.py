"""Draw a recording, what was heard in it, and how often that was right."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .detector import BANDS, FRAME
from .score import Score
from .speech import RATE, WORDS, Said

# Told apart by all common kinds of colour vision (Okabe and Ito); the page has the same.
COLOURS = dict(zip(WORDS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True))


def draw(
    file: Path, loudness: np.ndarray, classes: np.ndarray, said: list[Said], found: Score
) -> None:
    """Save the bands of a recording and the detector's output, and the confusion matrix."""
    figure = Figure(figsize=(14, 5.2), dpi=100, layout="constrained")
    figure.suptitle(
        f"{found.accuracy:.1%} of the words heard, spoken by voices that were not trained on; "
        "C, WebAssembly and Python give the same bytes",
        fontweight="bold",
    )
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 1))
    bands = figure.add_subplot(grid[0, 0])
    draw_loudness(bands, loudness)
    draw_classes(figure.add_subplot(grid[1, 0], sharex=bands), classes, said)
    draw_confusion(figure.add_subplot(grid[:, 1]), found.confusion)
    figure.savefig(file)


def draw_loudness(axes: Axes, loudness: np.ndarray) -> None:
    """What the recurrent layer reads, before it is compressed."""
    decibels = 20 * np.log10(np.maximum(loudness.T, 1e-4))
    end = len(loudness) * FRAME / RATE
    axes.imshow(decibels, origin="lower", aspect="auto", extent=(0, end, 0, BANDS), cmap="Greys")
    axes.set(title=f"A recording, as the exported header has it: {BANDS} bands", ylabel="band")
    axes.tick_params(labelbottom=False)


def draw_classes(axes: Axes, classes: np.ndarray, said: list[Said]) -> None:
    """Each word's probability, and above it what was said when."""
    seconds = np.arange(len(classes)) * FRAME / RATE
    for k, (word, colour) in enumerate(COLOURS.items()):
        axes.fill_between(seconds, classes[:, 1 + k], color=colour, alpha=0.3, linewidth=0)
        axes.plot(seconds, classes[:, 1 + k], color=colour, linewidth=1.5, label=word)
    for k, (word, start, end) in enumerate(said):
        colour = COLOURS.get(word, "0.5")
        axes.hlines(1.08, start / RATE, end / RATE, color=colour, linewidth=4)
        middle = (start + end) / 2 / RATE
        bold = "bold" if word in WORDS else "normal"
        axes.text(
            middle, 1.14 + 0.14 * (k % 2), word, color=colour, weight=bold, ha="center", fontsize=9
        )
    axes.set(xlabel="s", ylabel="probability", ylim=(0, 1.42), yticks=(0, 0.5, 1))
    axes.set_title("What was said (bars), and the probability of each word after each 16 ms")
    axes.spines[["top", "right"]].set_visible(False)


def draw_confusion(axes: Axes, confusion: np.ndarray) -> None:
    """Counts in words, and as shares of what was said in colours."""
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmax=1.2)
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    places = range(len(confusion))
    axes.set_xticks(places, ["nothing", *WORDS], rotation=45, ha="right")
    axes.set_yticks(places, ["others", *WORDS])
    axes.set(xlabel="heard", ylabel="said", title="Voices not trained on, in noise")
