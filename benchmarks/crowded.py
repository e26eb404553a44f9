"""Measure calls on one thread and on two where other programs have the processors.

The others are processes that do nothing but keep a processor busy. What a call takes is the mean of
as many as fit into the given time, since a few slow ones are what it is about.

Example:
    python -m benchmarks.crowded --package torch --busy 2
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from itertools import product
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .run import shape

SHAPES = [(20, 256, 16, 32), (100, 1, 128, 256), (100, 16, 128, 128)]
PACKAGES = ("numpy", "torch")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crowded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--package", nargs="+", choices=PACKAGES, default=PACKAGES)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="processes")
    parser.add_argument("--shape", nargs="+", type=shape, default=SHAPES, help="L,N,D,H of a GRU")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each measurement")
    options = parser.parse_args()
    cases = list(product(options.package, options.shape))
    found = Table("package", "(L, N, D, H)", *(f"{n} busy" for n in options.busy), box=box.MARKDOWN)
    found.title = "ms on one thread / on two, beside so many busy processes"
    for package, each in track(cases, "crowded", console=Console(stderr=True), transient=True):
        call, set_threads = layer(package, *each)
        row = [package, str(each)]
        for busy in options.busy:
            with processes(busy):
                ms = [1e3 * mean(call, n, set_threads, options.seconds) for n in (1, 2)]
            row.append(f"{ms[0]:.2f} / {ms[1]:.2f}")
        found.add_row(*row)
    Console().print(found)


def layer(package: str, L: int, N: int, D: int, H: int) -> tuple[Callable[[], Any], Any]:
    """A call of a GRU without gradients, and what sets the number of its threads."""
    x = np.random.default_rng(0).standard_normal((L, N, D), "float32")
    if package == "numpy":
        import elman

        numpys = elman.GRU(D, H, seed=0)
        return (lambda: numpys(x)), elman.set_num_threads
    import torch

    import elman.torch

    torchs, tensor = elman.torch.GRU(D, H).requires_grad_(False), torch.tensor(x)
    return (lambda: torchs(tensor)), torch.set_num_threads


@contextlib.contextmanager
def processes(busy: int) -> Generator[None]:
    """So many of them, for as long as it takes."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(busy)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def mean(
    call: Callable[[], Any], threads: int, set_threads: Callable[[int], None], seconds: float
) -> float:
    """Seconds a call on so many threads."""
    set_threads(threads)
    call()
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        call()
        count += 1
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
