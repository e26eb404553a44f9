"""Draw how the LSTM learns, and what it writes."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw(
    file: Path, losses: list[float], bits: list[float], tables: dict[int, float], written: str
) -> None:
    """Save the learning curve beside the tables', and a page."""
    figure = Figure(figsize=(13, 5), dpi=85, layout="constrained")
    figure.suptitle(
        f"An LSTM that has read Python's manual: {bits[-1]:.2f} bits a character on pages that it "
        "has not seen",
        fontweight="bold",
    )
    curve, page = figure.subplots(1, 2, width_ratios=(3, 4))
    epochs = np.arange(1, len(bits) + 1)
    curve.plot(epochs, losses, "o--", color="#56B4E9", label="LSTM, as it learns")
    curve.plot(epochs, bits, "o-", color="#0072B2", linewidth=2, label="LSTM, held out")
    for (order, value), style in zip(tables.items(), (":", "-."), strict=True):
        label = f"table of {order} characters, held out"
        curve.axhline(value, color="#E69F00", linestyle=style, linewidth=2, label=label)
    curve.set(xlabel="epoch", title="Bits a character", ylim=(0, None), xticks=epochs)
    curve.grid(alpha=0.25)
    curve.legend(frameon=False, loc="lower left")
    curve.spines[["top", "right"]].set_visible(False)
    lines = [part for line in written.split("\n") for part in textwrap.wrap(line, 84) or [""]]
    page.text(0, 1, "\n".join(lines[:24]), family="monospace", va="top", parse_math=False)
    page.set_title("What it writes, by a stream from NumPy", loc="left")
    page.axis("off")
    figure.savefig(file)
