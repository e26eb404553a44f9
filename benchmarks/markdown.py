"""The table that README and docs/performance.md show of a run: how many times as fast as others.

Example:
    python -m benchmarks.markdown benchmarks/results/amd-epyc-family-23-model-1.json --cell GRU
"""

import argparse
import json
from pathlib import Path

from . import results
from .grid import CELLS, LARGEST, OVERHEAD, STREAMING, Case
from .measure import Result
from .results import Run

#: What the shapes are like.
LIKE = {
    STREAMING: "one streaming step",
    (100, 1, 32, 64): "a sensor",
    (100, 1, 128, 256): "a sensor, a larger model",
    (100, 1, 512, 512): "one row, a large model",
    (16000, 1, 1, 24): "a second of audio",
    (20, 256, 16, 32): "reinforcement learning",
    (1000, 8, 64, 64): "long series",
    (100, 16, 128, 128): "a batch of series",
    (500, 32, 64, 128): "torch: packed",
    (100, 32, 256, 256): "a larger model",
    (100, 64, 512, 512): "a middle-sized model",
    LARGEST: "a large one",
}
#: Mode, Elman's package, and whom it is compared with: torch, or the fastest of all others.
COLUMNS = [
    ("inference: NumPy package, against torch", "inference", "elman", True),
    ("against the best", "inference", "elman", False),
    ("PyTorch package, against torch", "inference", "elman.torch", True),
    ("against the best", "inference", "elman.torch", False),
    ("training: PyTorch package, against torch", "training", "elman.torch", True),
    ("against the best", "training", "elman.torch", False),
]


def table(run: Run, cell: str) -> list[str]:
    """Its lines: a row for each case of the cell on one thread."""
    titles = ["(L, N, D, H)", "for example", *(title for title, *_ in COLUMNS)]
    lines = [row(titles), row(["---"] * len(titles))]
    for case, by_mode in cases(run, cell).items():
        figures = [
            figure(by_mode[mode], ours, torch) if mode in by_mode else ""
            for _, mode, ours, torch in COLUMNS
        ]
        lines.append(row([case.name, LIKE.get(case.shape, ""), *figures]))
    return lines


def cases(run: Run, cell: str) -> dict[Case, dict[str, Result]]:
    """The results of the cell's cases on one thread, by mode."""
    found: dict[Case, dict[str, Result]] = {}
    for result in run["results"]:
        case = Case.read(result["case"])
        if case.cell == cell and case.shape != OVERHEAD and result["threads"] == 1:
            found.setdefault(case, {})[result["mode"]] = result
    return found


def figure(result: Result, ours: str, against_torch: bool) -> str:
    """The median ratio, in as many digits as a reader needs."""
    packed = "torch packed" in result["seconds"]
    torch = "torch packed" if packed else "torch"
    ratio = (
        results.ratio(result, torch, ours) if against_torch else results.best_ratio(result, ours)
    )
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
    options = parser.parse_args()
    print("\n".join(table(json.loads(options.results.read_text()), options.cell)))
