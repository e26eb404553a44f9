"""Draw what both policies have learnt, and how fast."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .learn import LONGEST, SOLVED, Learning

# Told apart by all common kinds of colour vision (Okabe and Ito).
COLOURS = {"elman": "#0072B2", "sb3-contrib": "#E69F00"}
POINTS = 20  # of a curve


def draw(
    file: Path,
    learnings: dict[str, list[Learning]],
    summary: dict[str, dict[str, float]],
    steps: int,
    threads: int,
) -> None:
    """Save the learning curves, the time of an update and the frames a second."""
    figure = Figure(figsize=(15, 4.8), dpi=150, layout="constrained")
    seeds = len(learnings["elman"])
    ours, stock = summary["elman"], summary["sb3-contrib"]
    figure.suptitle(
        f"CartPole without velocities: {ours['score']:.0f} of {LONGEST} (sb3-contrib's policy: "
        f"{stock['score']:.0f}), updates {summary['speedup']['updates']:.1f}"
        f"\N{MULTIPLICATION SIGN} as fast ({seeds} seed{'s' * (seeds > 1)}, "
        f"{threads} thread{'s' * (threads > 1)})",
        fontsize=15,
        fontweight="bold",
    )
    curves, updates, frames = figure.subplots(1, 3, width_ratios=(3, 2, 2))
    draw_curves(curves, learnings, steps)
    milliseconds = {name: 1e3 * summary[name]["update_seconds"] for name in COLOURS}
    draw_bars(updates, "Milliseconds of an update", milliseconds)
    rates = {name: summary[name]["frames_per_second"] for name in COLOURS}
    draw_bars(frames, "Frames a second, acting and updating", rates)
    figure.savefig(file)


def draw_curves(axes: Axes, learnings: dict[str, list[Learning]], steps: int) -> None:
    """Draw a thin line a seed, and a bold one for their mean."""
    edges = np.linspace(0, steps, POINTS + 1)
    for name, found in learnings.items():
        curves = np.array([curve(each, edges) for each in found])
        axes.plot(edges[1:], curves.T, color=COLOURS[name], linewidth=0.8, alpha=0.6)
        axes.plot(edges[1:], curves.mean(0), color=COLOURS[name], linewidth=3, label=name)
    axes.axhline(SOLVED, color="grey", linestyle=":", label="solved")
    axes.set(xlabel="frames", ylabel="return while it learns", ylim=(0, 1.02 * LONGEST))
    axes.set_title("Learning: each seed, and the mean")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def curve(learning: Learning, edges: np.ndarray) -> np.ndarray:
    """Mean return of the episodes that ended between two edges each; where none did, the last."""
    ends, returns = np.array(learning.ends), np.array(learning.returns)
    means, mean = [], 0.0
    for first, last in pairwise(edges):
        between = (first < ends) & (ends <= last)
        mean = returns[between].mean() if between.any() else mean
        means.append(mean)
    return np.array(means)


def draw_bars(axes: Axes, title: str, values: dict[str, float]) -> None:
    """Draw a bar a policy."""
    axes.barh(list(values), values.values(), color=COLOURS.values(), height=0.6)
    longest = max(values.values())
    for row, value in enumerate(values.values()):
        axes.text(value + 0.02 * longest, row, f"{value:.0f}", va="center", fontweight="bold")
    axes.set(title=title, xlim=(0, 1.2 * longest))
    axes.spines[["top", "right"]].set_visible(False)
