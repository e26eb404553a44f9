"""Draw the demonstration's picture."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from .report import LABELS, Run, Summary, circumstances

# Told apart by all common kinds of colour vision (Okabe and Ito).
COLOURS = {"elman": "#0072B2", "torch": "#E69F00", "numpy": "#009E73"}


def draw(file: Path, summary: Summary, runs: list[Run], speakers: np.ndarray) -> None:
    """Save the loss curves, the confusion matrix of the first seed and the times."""
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
    figure = Figure(figsize=(15, 5.6), dpi=150, layout=layout)
    figure.suptitle(
        f"Nine speakers, two vowels: {summary['accuracy_elman']:.1%} recognised, "
        f"trained {summary['train_speedup']:.1f}\N{MULTIPLICATION SIGN} as fast as torch.nn "
        f"({circumstances(summary)})",
        fontsize=16,
        fontweight="bold",
    )
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 3))
    draw_losses(figure.add_subplot(grid[:, 0]), runs)
    named = runs[0].answers["numpy"].logits.argmax(axis=1)
    draw_confusion(figure.add_subplot(grid[:, 1]), speakers, named)

    times = summary["per_seed"]
    training = {package: times[f"train_seconds_{package}"] for package in ("elman", "torch")}
    draw_times(figure.add_subplot(grid[0, 2], title="Time to train"), training, 1, "s")
    classifying = {
        package: times[f"classify_seconds_{package}"] for package in ("elman", "numpy", "torch")
    }
    title = f"Time to classify {len(speakers)} utterances"
    draw_times(figure.add_subplot(grid[1, 2], title=title), classifying, 1000, "ms")
    figure.savefig(file)


def draw_losses(axes: Axes, runs: list[Run]) -> None:
    """Draw the mean loss over the seeds, one package thick and one dashed: they coincide."""
    styles = {
        "torch": {"linewidth": 7},
        "elman": {"linewidth": 2.2, "linestyle": (0, (3, 1.5))},
    }
    for package, style in styles.items():
        losses = np.mean([run.trainings[package].losses for run in runs], axis=0)
        epochs = np.arange(1, len(losses) + 1)
        axes.plot(epochs, losses, color=COLOURS[package], label=LABELS[package], **style)
    axes.set_title("The same loss, epoch by epoch")
    axes.set(xlabel="epoch", ylabel="training loss, mean of the seeds")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper right", handlelength=3.5)
    axes.spines[["top", "right"]].set_visible(False)


def draw_confusion(axes: Axes, speakers: np.ndarray, named: np.ndarray) -> None:
    """Draw how many utterances of each speaker were taken for each speaker."""
    count = speakers.max() + 1
    table = np.zeros((count, count), int)
    np.add.at(table, (speakers, named), 1)
    shares = table / table.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for row, column in zip(*table.nonzero(), strict=True):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(table[row, column]), color=colour, ha="center", va="center")
    numbers = [str(speaker + 1) for speaker in range(count)]
    axes.set_xticks(range(count), numbers)
    axes.set_yticks(range(count), numbers)
    edges = np.arange(count - 1) + 0.5
    axes.hlines(edges, -0.5, count - 0.5, color="white", linewidth=1.5)
    axes.vlines(edges, -0.5, count - 0.5, color="white", linewidth=1.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    right = np.trace(table)
    axes.set(
        title=f"{right} of {len(speakers)} test utterances recognised",
        xlabel="speaker named by elman (NumPy), seed 0",
        ylabel="speaker",
    )


def draw_times(axes: Axes, seconds: dict[str, list[float]], scale: float, unit: str) -> None:
    """Draw a bar a package, the mean over the seeds, and a dot a seed."""
    longest = scale * max(map(max, seconds.values()))
    for row, (package, runs) in enumerate(seconds.items()):
        times = scale * np.array(runs)
        axes.barh(row, times.mean(), height=0.62, color=COLOURS[package])
        axes.plot(times, np.full(len(times), row), "o", color="black", markersize=3, alpha=0.6)
        label = f"{times.mean():.2f} {unit}"
        axes.text(times.max() + 0.025 * longest, row, label, va="center", fontweight="bold")
    axes.set_yticks(range(len(seconds)), [LABELS[package] for package in seconds])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.3 * longest), xlabel=f"{unit}, mean of the seeds (dots: each seed)")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
