"""Measure Elman against a framework's own layer: seconds a call and their ratios, in one run.

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

from .contenders import AGAINST, check
from .grid import GRID, MLX, QUICK, Case, inputs

TURNS = 15
SECONDS_A_TURN = 0.02  # short calls are repeated until a turn lasts this long


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=AGAINST, default="torch", help="default: torch")
    parser.add_argument("--quick", action="store_true", help="seven cases instead of the grid")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--output", type=Path, default=Path("build/bench/bench.json"))
    args = parser.parse_args()
    cases = MLX if args.against == "mlx" else QUICK if args.quick else GRID
    work = [(threads, case) for threads in args.threads for case in cases]
    results = [measure(case, args.against, threads) for threads, case in track(work, "measuring")]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1))
    print_table(results, *(contender.name for contender in AGAINST[args.against]))
    print(f"saved in {args.output}")


def measure(case: Case, against: str, threads: int) -> dict:
    """Check and time one case; milliseconds by job and contender, one figure a turn."""
    torch.set_num_threads(threads)
    elman.set_num_threads(threads)
    arrays = inputs(case)
    contenders = [make(case, arrays) for make in AGAINST[against]]
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


def print_table(results: list[dict], rival: str, *ours: str) -> None:
    """The rival's milliseconds, and how many times as fast Elman is."""
    table = Table(title=f"times as fast as {rival}: median (quartiles)")
    table.add_column("(L, N, D, H)", no_wrap=True)
    table.add_column("threads", justify="right")
    for job in ("infer", "train"):
        table.add_column(f"{job}: {rival}, ms", justify="right")
        for name in ours:
            if name in results[0]["milliseconds"][job]:
                table.add_column(f"{job}: {name}", justify="right", no_wrap=True)
    for result in results:
        cells = [result["case"], str(result["threads"])]
        for times in (result["milliseconds"][job] for job in ("infer", "train")):
            cells.append(f"{np.median(times[rival]):.3g}")
            cells += [ratio(times[rival], times[name]) for name in ours if name in times]
        table.add_row(*cells)
    Console(width=140).print(table)


def ratio(rival: list[float], ours: list[float]) -> str:
    """How many times as fast as the rival, turn by turn."""
    low, middle, high = np.percentile(np.array(rival) / np.array(ours), [25, 50, 75])
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    main()
