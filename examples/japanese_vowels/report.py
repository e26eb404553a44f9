"""Sum the demonstration up: the figures, and the table that shows them."""

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import elman

from .answers import Answer
from .train import Training

LABELS = {"elman": "elman.torch", "torch": "torch.nn", "numpy": "elman (NumPy)"}

Summary = dict[str, Any]


class Run(NamedTuple):
    """All that came out of one seed, under the names of the packages."""

    trainings: dict[str, Training]  # elman, torch
    answers: dict[str, Answer]  # elman, torch, numpy
    differences: dict[str, float]  # torch and numpy, to elman with the same weights


def summarise(runs: list[Run], speakers: np.ndarray, threads: int) -> Summary:
    """Return the figures: means over the seeds, the greatest differences, and every seed's own."""
    per_seed: dict[str, list[float]] = {}
    for package in LABELS:
        answers = [run.answers[package] for run in runs]
        per_seed[f"accuracy_{package}"] = [answer.accuracy(speakers) for answer in answers]
        per_seed[f"classify_seconds_{package}"] = [answer.seconds for answer in answers]
    for package in ("elman", "torch"):
        per_seed[f"train_seconds_{package}"] = [run.trainings[package].seconds for run in runs]
    means = {name: float(np.mean(values)) for name, values in per_seed.items()}
    return {
        **means,
        "train_speedup": means["train_seconds_torch"] / means["train_seconds_elman"],
        "max_difference_numpy_torch": max(run.differences["numpy"] for run in runs),
        "max_difference_stock_torch": max(run.differences["torch"] for run in runs),
        "max_difference_losses": max(map(loss_difference, runs)),
        "seeds": len(runs),
        "epochs": len(runs[0].trainings["elman"].losses),
        "threads": threads,
        "versions": {
            "elman": elman.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "per_seed": per_seed,
    }


def loss_difference(run: Run) -> float:
    """Return how far apart the two loss curves are where they are farthest apart."""
    elman_losses, torch_losses = (
        np.array(run.trainings[package].losses) for package in run.trainings
    )
    return float(np.abs(elman_losses - torch_losses).max())


def save_summary(summary: Summary, file: Path) -> None:
    """Write the figures as JSON."""
    file.write_text(json.dumps(summary, indent=2) + "\n")


def print_table(summary: Summary) -> None:
    """Print the figures, a row a package."""
    differences = {
        "elman": "-",
        "torch": f"{summary['max_difference_stock_torch']:.1e}",
        "numpy": f"{summary['max_difference_numpy_torch']:.1e}",
    }
    table = Table(title=f"Japanese Vowels, {circumstances(summary)}")
    table.add_column("package")
    for heading in ("test accuracy", "train, s", "classify, ms", "difference*"):
        table.add_column(heading, justify="right")
    for package, label in LABELS.items():
        training = summary.get(f"train_seconds_{package}")
        table.add_row(
            label,
            f"{summary[f'accuracy_{package}']:.2%}",
            "-" if training is None else f"{training:.2f}",
            f"{1000 * summary[f'classify_seconds_{package}']:.1f}",
            differences[package],
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("* greatest absolute, from the GRU outputs of elman.torch with the same weights")
    console.print(f"elman.torch trains {summary['train_speedup']:.1f} times as fast as torch.nn")


def circumstances(summary: Summary) -> str:
    """Say over how many seeds and on how many threads the figures were taken."""
    seeds, threads = summary["seeds"], summary["threads"]
    return f"{seeds} seed{'s' * (seeds > 1)}, {threads} thread{'s' * (threads > 1)}"
