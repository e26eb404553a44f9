"""Draw what was played, what was wanted, and what the C program gave."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .sound import RATE


def draw(
    file: Path,
    signals: dict[str, np.ndarray],
    losses: list[float],
    error: float,
) -> None:
    """Save some hundredths of a second of input, target and output, and the loss."""
    figure = Figure(figsize=(13, 4.6), dpi=130, layout="constrained")
    figure.suptitle(
        f"An amplifier in C: an LSTM of 20 units, off by {error:.2%} of the signal's power; "
        "the C program's bytes are Python's",
        fontweight="bold",
    )
    waves, curve = figure.subplots(1, 2, width_ratios=(3, 1))
    styles = {
        "input": {"color": "0.6", "linewidth": 1},
        "target: the formula": {"color": "#E69F00", "linewidth": 5},
        "output: the C program": {"color": "#0072B2", "linewidth": 1.6},
    }
    loudest = int(np.argmax(np.abs(signals["input"])))
    part = slice(loudest + RATE // 20, loudest + RATE // 14)
    milliseconds = 1000 * np.arange(part.start, part.stop) / RATE
    for name, style in styles.items():
        waves.plot(milliseconds, signals[name][part], label=name, **style)
    waves.set(xlabel="ms", title="A recording that was not trained on")
    waves.legend(frameon=False, loc="upper right")
    curve.semilogy(np.arange(1, len(losses) + 1), losses, color="#0072B2")
    curve.set(xlabel="epoch", title="Error over the signal's power")
    for axes in (waves, curve):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
