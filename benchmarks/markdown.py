"""The table that README and docs/performance.md show of a run: how many times as fast as others.

Of the grid, or of the models that ``benchmarks.models`` measured.

Example:
    python -m benchmarks.markdown build/bench/bench.json --cell GRU
    python -m benchmarks.markdown build/bench/models.json --table models
"""

import argparse
import json
from pathlib import Path

from . import models, results
from .grid import CELLS, LIKE, OVERHEAD, Case
from .measure import Result
from .results import Run

BEST = "the best of the others"
#: Of each table the columns: title, mode, Elman's package, and whom it is compared with. "torch" is
#: torch packed where rows' lengths differ.
TABLES = {
    "all": [
        ("inference, NumPy package: against torch", "inference", "elman", "torch"),
        ("inference, NumPy package: against the best", "inference", "elman", BEST),
        ("inference, PyTorch package: against torch", "inference", "elman.torch", "torch"),
        ("inference, PyTorch package: against the best", "inference", "elman.torch", BEST),
        ("training, PyTorch package: against torch", "training", "elman.torch", "torch"),
        ("training, PyTorch package: against the best", "training", "elman.torch", BEST),
        ("training, NumPy package: against the best", "training", "elman", BEST),
    ],
    "jax": [
        ("inference", "inference", "elman.jax", "JAX"),
        ("training", "training", "elman.jax", "JAX"),
    ],
}


def table(run: Run, cell: str, which: str = "all") -> list[str]:
    """Its lines: a row for each case of the cell on one thread."""
    found = cases(run, cell)
    columns = {"(L, N, D, H)": [case.name for case in found]}
    columns["for example"] = [LIKE.get(case.shape, "") for case in found]
    for title, mode, *who in TABLES[which]:
        figures = [figure(by_mode[mode], *who) for by_mode in found.values()]
        if any(figures):  # not everybody has every cell
            columns[title] = figures
    lines = [[*columns], ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
    return [row(line) for line in lines]


def table_of_models(run: Run) -> list[str]:
    """A row for each model, cell and mode."""
    lines = [row([*models.COLUMNS]), row(["---"] * len(models.COLUMNS))]
    for found in run["models"]:
        fields = found | {"shape": tuple(found["shape"])}
        seconds = fields.pop("seconds")
        lines.append(row([*models.row(models.Case(**fields), seconds)]))
    return lines


def cases(run: Run, cell: str) -> dict[Case, dict[str, Result]]:
    """The results of the cell's cases on one thread, by mode."""
    found: dict[Case, dict[str, Result]] = {}
    for result in run["results"]:
        case = Case.read(result["case"])
        if case.cell == cell and case.shape != OVERHEAD and result["threads"] == 1:
            found.setdefault(case, {})[result["mode"]] = result
    return found


def figure(result: Result, ours: str, other: str) -> str:
    """The median ratio, in as many digits as a reader needs."""
    if other == "torch" and "torch packed" in result["seconds"]:
        other = "torch packed"
    best = other == BEST
    ratio = results.best_ratio(result, ours) if best else results.ratio(result, other, ours)
    if ratio is None:
        return ""
    return f"{ratio.median:.0f}" if ratio.median >= 10 else f"{ratio.median:#.2g}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.markdown",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--cell", choices=CELLS, default="GRU", help="default: %(default)s")
    parser.add_argument(
        "--table", choices=[*TABLES, "models"], default="all", help="default: %(default)s"
    )
    options = parser.parse_args()
    run = json.loads(options.results.read_text())
    of_models = options.table == "models"
    print("\n".join(table_of_models(run) if of_models else table(run, options.cell, options.table)))
