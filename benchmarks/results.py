"""What the measurements say: ratios, shares of the machine's limits, and the summary of them.

Everything is computed from what the JSON file holds, so that two files can be compared. A ratio
above 1 says that Elman is faster.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import peaks
from .contenders import OTHERS
from .grid import CELLS, OVERHEAD, STREAMING, Case
from .measure import TOO_LONG, Result

Run = dict[str, Any]  # the whole file


class Ratio(NamedTuple):
    """Someone's time over Elman's, turn by turn: median and quartiles."""

    against: str
    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(result: Result, other: str, ours: str) -> Ratio | None:
    """How many times as fast as the other one of ours is, if both were timed."""
    seconds = result["seconds"]
    if other not in seconds or ours not in seconds:
        return None
    turns = min(len(seconds[other]), len(seconds[ours]))
    each = np.array(seconds[other][:turns]) / np.array(seconds[ours][:turns])
    low, median, high = np.percentile(each, [25, 50, 75])
    return Ratio(other, float(low), float(median), float(high))


def best_other(result: Result, among: list[str] | None = None) -> str | None:
    """Who is the fastest of all the others."""
    names = [n for n in (OTHERS if among is None else among) if n in result["seconds"]]
    return min(names, key=lambda name: seconds(result, name), default=None)


def best_ratio(result: Result, ours: str) -> Ratio | None:
    """How many times as fast as the best of all the others."""
    best = best_other(result)
    return None if best is None else ratio(result, best, ours)


def seconds(result: Result, name: str) -> float:
    """A contender's median seconds a call."""
    return float(np.median(result["seconds"][name]))


def share(run: Run, result: Result, name: str) -> float:
    """The share of the machine's limit, as measured in the same run, that a contender reaches."""
    peak = peaks.best(run["peaks"][str(result["threads"])])
    case, threads = Case.read(result["case"]), result["threads"]
    limit = peaks.limit(case, result["mode"], threads, peak, run["machine"]["caches"])
    return limit / seconds(result, name)


class Figure(NamedTuple):
    """One line of the summary: a value for each shape, or for some of them."""

    title: str
    cell: str
    threads: int
    values: dict[str, float]  # by the case's name

    @property
    def least(self) -> float:
        return min(self.values.values())

    @property
    def median(self) -> float:
        return float(np.median(list(self.values.values())))

    @property
    def least_at(self) -> str:
        return min(self.values, key=lambda name: self.values[name])


Measure = Callable[[Run, Result], float | None]


def against_best(ours: str) -> Measure:
    def measure(run: Run, result: Result) -> float | None:
        found = best_ratio(result, ours)
        return found and found.median

    return measure


def against(other: str, ours: str) -> Measure:
    def measure(run: Run, result: Result) -> float | None:
        found = ratio(result, other, ours)
        return found and found.median

    return measure


def share_of_arithmetic(ours: str) -> Measure:
    """Of the FMA peak, where there are enough rows to come near it."""

    def measure(run: Run, result: Result) -> float | None:
        enough = Case.read(result["case"]).N >= 16
        return share(run, result, ours) if enough and ours in result["seconds"] else None

    return measure


def share_of_bandwidth(ours: str) -> Measure:
    """Of the rate at which a lone row's weights can be read."""

    def measure(run: Run, result: Result) -> float | None:
        alone = Case.read(result["case"]).N == 1
        return share(run, result, ours) if alone and ours in result["seconds"] else None

    return measure


def at(shape: tuple[int, ...], measure: Measure) -> Measure:
    """The same, of one shape."""

    def measure_there(run: Run, result: Result) -> float | None:
        return measure(run, result) if Case.read(result["case"]).shape == shape else None

    return measure_there


def one_over_many(ours: str) -> Measure:
    """One thread's time over that of so many."""

    def measure(run: Run, result: Result) -> float | None:
        for one in run["results"]:
            same = all(one[key] == result[key] for key in ("case", "mode"))
            timed = ours in one["seconds"] and ours in result["seconds"]
            if same and timed and one["threads"] == 1 < result["threads"]:
                return seconds(one, ours) / seconds(result, ours)
        return None

    return measure


#: The lines of the summary: title, mode, and what is taken of each result.
FIGURES: list[tuple[str, str, Measure]] = [
    ("NumPy package against the best of the others", "inference", against_best("elman")),
    ("PyTorch package against the best of the others", "inference", against_best("elman.torch")),
    ("PyTorch package, a streaming step", "inference", at(STREAMING, against_best("elman.torch"))),
    ("PyTorch package against the best of the others", "training", against_best("elman.torch")),
    ("NumPy package against the best of the others", "training", against_best("elman")),
    ("PyTorch package against torch", "inference", against("torch", "elman.torch")),
    ("PyTorch package against torch", "training", against("torch", "elman.torch")),
    ("PyTorch package against torch packed", "inference", against("torch packed", "elman.torch")),
    ("PyTorch package against torch packed", "training", against("torch packed", "elman.torch")),
    ("MLX package against MLX", "inference", against("MLX", "elman.mlx")),
    ("MLX package against MLX", "training", against("MLX", "elman.mlx")),
    ("NumPy package, share of the FMA peak, N >= 16", "inference", share_of_arithmetic("elman")),
    ("NumPy package, share of the FMA peak, N >= 16", "training", share_of_arithmetic("elman")),
    ("NumPy package, share of the bandwidth, N = 1", "inference", share_of_bandwidth("elman")),
    ("NumPy package, one thread over so many", "inference", one_over_many("elman")),
    ("PyTorch package, one thread over so many", "training", one_over_many("elman.torch")),
]


def summary(run: Run) -> list[Figure]:
    """Every figure that the run has, for each cell and number of threads."""
    figures: list[Figure] = []
    for title, mode, measure in FIGURES:
        for cell in CELLS:
            for threads in run["options"]["threads"]:
                values: dict[str, float] = {}
                for result in run["results"]:
                    case = Case.read(result["case"])
                    here = result["threads"] == threads and result["mode"] == mode
                    if here and case.cell == cell and case.shape != OVERHEAD:
                        value = measure(run, result)
                        if value is not None:
                            values[case.name] = value
                if values:
                    figures.append(Figure(f"{mode}: {title}", cell, threads, values))
    return figures


def overheads(run: Run) -> dict[str, dict[str, float]]:
    """Seconds of a call that computes next to nothing, by cell and contender, on one thread."""
    return {
        result["case"]["cell"]: {name: seconds(result, name) for name in result["seconds"]}
        for result in run["results"]
        if Case.read(result["case"]).shape == OVERHEAD and result["mode"] == "inference"
        if result["threads"] == min(run["options"]["threads"])
    }


def near_the_peak(run: Run) -> list[str]:
    """Where the best of the others is so near the limit that nobody can be much faster."""
    found: list[str] = []
    for result in run["results"]:
        best, case = best_other(result), Case.read(result["case"])
        if best and case.N >= 16 and (reached := share(run, result, best)) > 0.9:
            threads = result["threads"]
            found.append(f"{case}, {result['mode']}, {threads} threads: {best} at {reached:.2f}")
    return found


def left_out(run: Run) -> list[str]:
    """Who did not run what, and why; MLX's patience apart, which the table shows."""
    found = {
        f"{name} in {result['mode']}: {why}"
        for result in run["results"]
        for name, why in result["left_out"].items()
        if not why.startswith(TOO_LONG)
    }
    return sorted(found)


def wrong(run: Run) -> list[str]:
    """Who failed the check."""
    return [
        f"{name} on {Case.read(result['case'])}, {result['mode']}: {why}"
        for result in run["results"]
        for name, why in result["wrong"].items()
    ]
