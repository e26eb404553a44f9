"""Forecast electricity demand up to a day ahead, and compare with the week before.

Eight weeks are learnt, two choose the model, and the last two, which nothing else has looked at,
are forecast after every half hour.

Example:
    python -m examples.forecasting --updates 400
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .demand import HORIZONS, TEST, Series, absolute_errors, load, origins, prepare
from .picture import draw
from .train import Forecaster, forecast, train

SHOWN = 1, 4, 12, 24, 48  # half hours ahead


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run everything and report; the mean errors in MW."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)

    series = prepare(load())
    columns = TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.updates)
        model, curve = train(series, options.updates, lambda: progress.advance(task))
    forecasts = all_forecasts(model, series)
    at = origins(TEST, len(series.demand))
    errors = {
        name: absolute_errors(series, each, at).mean(axis=0) for name, each in forecasts.items()
    }
    draw(options.output / "forecasting.png", series, forecasts, errors)
    print_table(console, errors)
    means = {name: float(each.mean()) for name, each in errors.items()}
    summary = {"error": means, "validation": curve} | {
        f"error of {name}": each.tolist() for name, each in errors.items()
    }
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1))
    less = 1 - means["GRU"] / means["week before"]
    console.print(f"the GRU's error is {less:.0%} less than the week before's")
    console.print(f"saved in {options.output}: forecasting.png, summary.json")
    return means


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command is given."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.forecasting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--updates", type=int, default=400, help="steps of training (default: %(default)s)")
    add("--threads", type=int, default=1, help="for PyTorch (default: %(default)s)")
    add("--output", type=Path, default=Path("build/forecasting"), help="default: %(default)s")
    return parser.parse_args(arguments)


def all_forecasts(model: Forecaster, series: Series) -> dict[str, np.ndarray]:
    """(T, HORIZONS) each: the network's, and those that take a second.

    The same half hour of the week before; and that, shifted by how far off it is now.
    """
    excess_now = np.repeat(series.seen[:, :1], HORIZONS, axis=1)
    return {
        "GRU": forecast(model, series),
        "week before": np.zeros_like(series.wanted),
        "week before, shifted": excess_now,
    }


def print_table(console: Console, errors: dict[str, np.ndarray]) -> None:
    """Print the mean errors of some horizons, and of all."""
    table = Table(title="Mean error in MW, of the last two weeks")
    table.add_column("forecast")
    for steps in SHOWN:
        table.add_column(f"{steps / 2:g} h", justify="right")
    table.add_column("all", justify="right")
    for name, each in errors.items():
        shown = [each[steps - 1] for steps in SHOWN] + [each.mean()]
        table.add_row(name, *(f"{value:.0f}" for value in shown))
    console.print(table)


if __name__ == "__main__":
    main()
