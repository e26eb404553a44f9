"""Draw what epochs and calls of a Keras model take, with whose layers."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Told apart by all common kinds of colour vision (Okabe and Ito).
COLOURS = {
    "Keras": "#E69F00",
    "accelerated": "#0072B2",
    "Elman": "#0072B2",
    "NumPy, no Keras": "#009E73",
}


def draw(
    file: Path,
    epochs: dict[str, list[float]],
    calls: dict[str, dict[str, float]],
    right: float,
    differences: dict[str, float],
) -> None:
    """Save the seconds of each epoch, and the milliseconds of calls of one row and of all."""
    figure = Figure(figsize=(13, 4.4), dpi=100, layout="constrained")
    worst = max(differences.values())
    figure.suptitle(
        f"A Keras model brought over: {right:.1%} of the speakers recognised, and answers within "
        f"{worst:.0e} of Keras's own",
        fontweight="bold",
    )
    training, *others = figure.subplots(1, 1 + len(calls), width_ratios=(3, *(2 for _ in calls)))
    first = 1
    for name, seconds in epochs.items():
        numbers = np.arange(first, first + len(seconds))
        training.bar(numbers, seconds, color=COLOURS[name], label=f"{name}'s layers")
        first += len(seconds)
    training.set(xlabel="epoch", title="Seconds of an epoch, one model")
    training.xaxis.get_major_locator().set_params(integer=True)
    training.legend(frameon=False)
    for axes, (what, milliseconds) in zip(others, calls.items(), strict=True):
        bars = axes.barh(
            list(milliseconds), milliseconds.values(), color=[COLOURS[n] for n in milliseconds]
        )
        axes.bar_label(bars, [short(value) for value in milliseconds.values()], padding=4)
        axes.set(title=f"Milliseconds, {what}", xlim=(0, 1.25 * max(milliseconds.values())))
        axes.invert_yaxis()
    for axes in (training, *others):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def short(value: float) -> str:
    """Two digits, or as many as stand before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
