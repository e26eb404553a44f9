"""Measure Elman and everyone else on one grid of layers, in one run; print a table, save JSON.

Every contender's output and gradients are checked against float64 before it is timed. Then the
contenders take turns, so that a slow moment of the machine strikes all of them, and ratios are
taken turn by turn. The limits of the machine are measured before and after.

Example:
    python -m benchmarks.run --shape 100,1,32,64 --cell GRU --mode inference --threads 1
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from elman.cli import processor

from . import measure, memory, peaks, report, results
from .contenders import OTHERS, OURS, PACKAGES
from .grid import CELLS, FOR_ONE_THREAD, GRID, LARGEST, MEMORY, MODES, OVERHEAD, Case


def main() -> int:
    """Measure, print, save; 1 if any contender was wrong."""
    options = parse()
    run = measure_all(options)
    run["summary"] = [figure._asdict() for figure in results.summary(run)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(run, indent=1))
    report.show(run)
    print(f"saved in {options.output}")
    if options.picture:
        from . import picture

        print(f"drawn in {picture.draw(run, options.picture)}")
    return 1 if results.wrong(run) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="in fewer turns, and but for the largest shape; on several threads the GRU alone, "
        "where there is work for them",
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads; default: 1 2"
    )
    parser.add_argument(
        "--shape", nargs="+", type=shape, help="only these: L,N,D,H, whatever the options"
    )
    parser.add_argument("--cell", nargs="+", choices=CELLS, help="only these; default: all")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--contender",
        nargs="+",
        choices=list(OURS | OTHERS),
        metavar="NAME",
        help="only these: " + ", ".join(OURS | OTHERS),
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench/bench.json"), help="default: %(default)s"
    )
    parser.add_argument("--picture", type=Path, help="draw the bars of one thread there")
    options = parser.parse_args()
    options.cases = [
        case
        for case in [Case(cell, *OVERHEAD) for cell in CELLS] + GRID
        if case.cell in (options.cell or CELLS)
        if not options.shape or case.shape in options.shape
        if not options.quick or case.shape != LARGEST or options.shape
    ]
    if not options.cases:
        parser.error("the grid has no such case")
    if options.contender is None:
        # Quickly: ours for MLX shows in the figures of ours for PyTorch, but for its own overhead.
        options.contender = [n for n in OURS | OTHERS if not (options.quick and n == "elman.mlx")]
    if max(options.threads) > len(peaks.available()):
        parser.error(f"there are {len(peaks.available())} processors")
    return options


def cases_on(threads: int, options: argparse.Namespace) -> list[Case]:
    """All, or quickly some of them, unless they were asked for."""
    cases = options.cases
    if options.quick and threads > 1:
        if not options.shape:
            cases = [case for case in cases if case.shape not in FOR_ONE_THREAD]
        if not options.cell:
            cases = [case for case in cases if case.cell == "GRU"]
    return cases


def shape(text: str) -> tuple[int, ...]:
    L, N, D, H = (int(size) for size in text.split(","))
    return L, N, D, H


def measure_all(options: argparse.Namespace) -> results.Run:
    """Everything that goes into the JSON file."""
    run: results.Run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "options": {"quick": options.quick, "threads": options.threads},
        "peaks": {},
        "results": [],
        "memory": {},
    }
    pace = measure.QUICK if options.quick else measure.FULL
    asks_memory = MEMORY in options.cases and "training" in options.mode
    who = [w for w in memory.WHO if asks_memory and w[1] in options.contender]
    cases = {threads: cases_on(threads, options) for threads in options.threads}
    steps = sum(map(len, cases.values())) + len(who)
    start = time.monotonic()
    with Steps(steps) as progress:
        for threads in options.threads:
            held = peaks.available()[:threads]
            run["peaks"][str(threads)] = [peaks.measure(held)]
            arguments = (held, cases[threads], options.mode, options.contender, pace)
            for case, found in zip(
                cases[threads], in_new_process(measure.run, *arguments), strict=True
            ):
                run["results"] += found
                progress.done(f"{case}, {threads} threads")
            run["peaks"][str(threads)].append(peaks.measure(held))
        for name, contender, own in who:
            (found,) = in_new_process(memory.run, peaks.available()[0], MEMORY, contender, own)
            run["memory"][name] = found
            progress.done(f"memory of {name}")
    run["seconds"] = round(time.monotonic() - start)
    return run


def in_new_process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """What `target(connection, *arguments)` sends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    while True:
        try:
            yield ours.recv()
        except EOFError:
            break
    process.join()
    if process.exitcode:
        raise SystemExit(f"benchmarks: a process ended with {process.exitcode}")


class Steps:
    """How far it is: a bar on a terminal, a line a step elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.count = steps, 0
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self.bar = Progress(
            *columns,
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            refresh_per_second=1,  # it takes time from what is measured
        )
        self.task = self.bar.add_task("", total=steps)

    def __enter__(self) -> "Steps":
        if sys.stderr.isatty():
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def done(self, what: str) -> None:
        self.count += 1
        self.bar.update(self.task, advance=1, description=what)
        if not sys.stderr.isatty():
            print(f"[{self.count}/{self.steps}] {what}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    return {
        "cpu": processor(),
        "processors": len(peaks.available()),
        "caches": peaks.cache_sizes(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


if __name__ == "__main__":
    sys.exit(main())
