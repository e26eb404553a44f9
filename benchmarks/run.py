"""Measure Elman against torch.nn: seconds a call and their ratios, in one run.

Every contender's output and gradient are checked against float64 before anything is timed. The
contenders take turns, so that a slow moment of the machine strikes all of them; a ratio is the
median over the turns, with its quartiles.

Example:
    python -m benchmarks.run --quick --threads 1
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import elman

from .contenders import CONTENDERS, ElmanNumpy, ElmanTorch, Torch, check
from .grid import GRID, QUICK, Case, inputs

TURNS = 15
SECONDS_A_TURN = 0.02  # short calls are repeated until a turn lasts this long


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seven cases instead of the grid")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--output", type=Path, default=Path("build/bench/bench.json"))
    args = parser.parse_args()
    cases = QUICK if args.quick else GRID
    work = [(threads, case) for threads in args.threads for case in cases]
    results = [measure(case, threads) for threads, case in track(work, "measuring")]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1))
    print_table(results)
    print(f"saved in {args.output}")


def measure(case: Case, threads: int) -> dict:
    """Check and time one case; milliseconds by job and contender, one figure a turn."""
    torch.set_num_threads(threads)
    elman.set_num_threads(threads)
    arrays = inputs(case)
    contenders = [make(case, arrays) for make in CONTENDERS]
    check(case, contenders, arrays)
    jobs = {("infer", c.name): c.infer for c in contenders}
    jobs |= {("train", c.name): c.train for c in contenders if c.can_train}
    milliseconds: dict[str, dict[str, list[float]]] = {"infer": {}, "train": {}}
    repeats = {key: max(1, int(SECONDS_A_TURN / time_call(job, 1))) for key, job in jobs.items()}
    for _ in range(TURNS):
        for (job, name), call in jobs.items():
            seconds = time_call(call, repeats[job, name])
            milliseconds[job].setdefault(name, []).append(1000 * seconds)
    return {"case": str(case), "threads": threads, "milliseconds": milliseconds}


def time_call(call, repeats: int) -> float:
    """Seconds a call, over so many in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def print_table(results: list[dict]) -> None:
    """Milliseconds of torch.nn, and how many times as fast Elman is."""
    table = Table(title="times as fast as torch.nn: median (quartiles)")
    table.add_column("(L, N, D, H)")
    for heading in ("threads", "torch.nn, ms", "elman", "elman.torch"):
        table.add_column(f"{heading}", justify="right")
    table.add_column("training: torch.nn, ms", justify="right")
    table.add_column("elman.torch", justify="right")
    for result in results:
        infer, train = result["milliseconds"]["infer"], result["milliseconds"]["train"]
        table.add_row(
            result["case"],
            str(result["threads"]),
            f"{np.median(infer[Torch.name]):.3g}",
            ratio(infer, ElmanNumpy.name),
            ratio(infer, ElmanTorch.name),
            f"{np.median(train[Torch.name]):.3g}",
            ratio(train, ElmanTorch.name),
        )
    Console(width=120).print(table)


def ratio(milliseconds: dict[str, list[float]], name: str) -> str:
    """How many times as fast as torch.nn, turn by turn."""
    ratios = np.array(milliseconds[Torch.name]) / np.array(milliseconds[name])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    main()
