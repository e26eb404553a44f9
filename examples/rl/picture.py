"""Draw what both policies have learnt, and how fast."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .learn import FRAMES, SOLVED, Learning

# Told apart by all common kinds of colour vision (Okabe and Ito).
COLOURS = {"elman": "#0072B2", "sb3-contrib": "#E69F00"}


def draw(
    file: Path,
    learnings: dict[str, list[Learning]],
    summary: dict[str, dict[str, float]],
    threads: int,
) -> None:
    """Save the learning curves, the time of an update and the frames a second."""
    figure = Figure(figsize=(15, 4.8), dpi=150, layout="constrained")
    seeds = len(learnings["elman"])
    figure.suptitle(
        f"CartPole without velocities: {summary['elman']['score']:.0f} of 500, updates "
        f"{summary['speedup']['updates']:.1f}\N{MULTIPLICATION SIGN} as fast as RecurrentPPO's own "
        f"({seeds} seed{'s' * (seeds > 1)}, {threads} thread{'s' * (threads > 1)})",
        fontsize=15,
        fontweight="bold",
    )
    curves, updates, frames = figure.subplots(1, 3, width_ratios=(3, 2, 2))
    draw_curves(curves, learnings)
    milliseconds = {name: 1e3 * summary[name]["update_seconds"] for name in COLOURS}
    draw_bars(updates, "Milliseconds of an update", milliseconds)
    rates = {name: summary[name]["frames_per_second"] for name in COLOURS}
    draw_bars(frames, "Frames a second, acting and updating", rates)
    figure.savefig(file)


def draw_curves(axes: Axes, learnings: dict[str, list[Learning]]) -> None:
    """Draw a line a seed."""
    for name, found in learnings.items():
        for seed, each in enumerate(found):
            frames = FRAMES * (1 + np.arange(len(each.returns)))
            label = name if seed == 0 else None
            width = 2 if name == "elman" else 5  # behind, where they coincide
            axes.plot(frames, each.returns, color=COLOURS[name], label=label, linewidth=width)
    axes.axhline(SOLVED, color="grey", linestyle=":", label="solved")
    axes.set(xlabel="frames", ylabel="return, mean of the latest 100 episodes", ylim=(0, 505))
    axes.set_title("Learning, a line a seed")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_bars(axes: Axes, title: str, values: dict[str, float]) -> None:
    """Draw a bar a policy."""
    axes.barh(list(values), values.values(), color=COLOURS.values(), height=0.6)
    longest = max(values.values())
    for row, value in enumerate(values.values()):
        axes.text(value + 0.02 * longest, row, f"{value:.0f}", va="center", fontweight="bold")
    axes.set(title=title, xlim=(0, 1.2 * longest))
    axes.spines[["top", "right"]].set_visible(False)
