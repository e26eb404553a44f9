"""The machine's limits, measured: multiply-adds a second, and bytes read from each memory.

They come from ``peak.cpp``, which the system's compiler builds when it is first needed, because
neither Python nor NumPy gets near them.
"""

import contextlib
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from .grid import Case

SOURCE = Path(__file__).with_name("peak.cpp")
PROGRAM = Path("build/bench/peak")
LEVELS = ("L1", "L2", "L3", "DRAM")
#: What is read over and over to measure each level.
WORKING_SETS = dict(zip(LEVELS, (24 << 10, 512 << 10, 8 << 20, 256 << 20), strict=True))

Peak = dict[str, Any]  # "gflops" and "gbytes", which is by level


def measure(processors: list[int]) -> Peak:
    """Arithmetic and bandwidth of so many processors at once."""
    build()
    command = [str(PROGRAM.resolve()), str(len(processors)), *map(str, WORKING_SETS.values())]
    ours = available()
    pin(processors)  # and so the program, which inherits it
    try:
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    finally:
        pin(ours)
    return {**found, "gbytes": dict(zip(LEVELS, found["gbytes"].values(), strict=True))}


def available() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(processors: list[int]) -> None:
    """Let every thread run on these processors only, and those that they start.

    Where the system lets us say so.
    """
    if hasattr(os, "sched_setaffinity"):
        tasks = Path("/proc/self/task")
        for thread in tasks.iterdir() if tasks.exists() else [Path("0")]:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), processors)


def build() -> None:
    if PROGRAM.exists() and PROGRAM.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    options = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
    subprocess.run([*compiler, *options, str(SOURCE), "-o", str(PROGRAM)], check=True)


def best(peaks: list[Peak]) -> Peak:
    """The highest of several measurements, since the clock drifts."""
    gbytes = {level: max(peak["gbytes"][level] for peak in peaks) for level in LEVELS}
    return {"gflops": max(peak["gflops"] for peak in peaks), "gbytes": gbytes}


def cache_sizes() -> dict[str, int]:
    """Bytes of L1 (of data), L2 and L3 that one processor sees; Linux tells."""
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}  # where nobody tells
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        kind, level, size = (
            (folder / name).read_text().strip() for name in ("type", "level", "size")
        )
        if kind != "Instruction":
            sizes[f"L{level}"] = int(size.removesuffix("K")) << 10
    return sizes


def level_of(case: Case, threads: int, caches: dict[str, int]) -> str:
    """The memory that holds the recurrent weights, each thread its part, and room to spare."""
    for level in ("L1", "L2", "L3"):
        part = case.recurrent_bytes / (1 if level == "L3" else threads)
        if part < caches[level]:
            return level
    return "DRAM"


def limit(case: Case, mode: str, threads: int, peak: Peak, caches: dict[str, int]) -> float:
    """Seconds that the case takes at least.

    A lone row has to read the recurrent weights at every step; more rows share what is read, and
    then the arithmetic takes longer.
    """
    if case.N == 1:
        return case.bytes_read(mode) / peak["gbytes"][level_of(case, threads, caches)] / 1e9
    return case.flops(mode) / peak["gflops"] / 1e9
