"""What a process of its own does: it builds, checks and times every contender, case by case.

Frameworks look at the processors they may use when they are imported, and so each number of threads
has its own process, held to as many processors. Only there are frameworks imported.
"""

import gc
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from . import peaks
from .contenders import Contender, LeftOutError, make
from .grid import Case, draw

Result = dict[str, Any]
TOO_LONG = "would take about "  # how a reason to leave someone out begins


@dataclass(frozen=True)
class Pace:
    """How much time to take."""

    turns: int  # at most
    fewest: int  # turns, however long they take
    budget: float  # seconds for all turns of a case, unless that is fewer than the fewest
    turns_if_slow: int  # of a contender SLOW times as slow as the fastest
    patience: float  # seconds: MLX is left out where a call takes longer


FULL = Pace(turns=15, fewest=5, budget=5, turns_if_slow=2, patience=1.5)
QUICK = Pace(turns=3, fewest=2, budget=0.3, turns_if_slow=1, patience=0.1)

A_WHILE = 0.005  # seconds: short calls are repeated until a turn lasts as long
#: Seconds: of longer calls the first one tells how long they take, and nobody warms up for them.
LONG = 0.05
#: Seconds of sleep before each contender on several threads: those of OpenMP, ONNX Runtime and
#: others go on spinning for some milliseconds after their call, and would be in the next one's way.
PAUSE = 0.01
SLOW = 20


def run(
    connection: Connection,
    processors: list[int],
    cases: list[Case],
    modes: list[str],
    names: list[str],
    pace: Pace,
) -> None:
    """Send the results of each case, one a mode. Runs in a new process."""
    hold(processors)
    for case in cases:
        connection.send(measure(case, modes, names, len(processors), pace))
    connection.close()


def hold(processors: list[int]) -> None:
    """Hold this process to so many processors, before any framework is imported.

    Not every one can be told how many threads to take: XLA's flag alone leaves it several.
    """
    peaks.pin(processors)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if len(processors) == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"


def measure(
    case: Case, modes: list[str], names: list[str], threads: int, pace: Pace
) -> list[Result]:
    """Check and time one case: a result a mode, with the seconds of each contender and turn."""
    from .check import WrongError, check, reference

    inputs = draw(case)
    right = reference(case, inputs, modes)
    results = {mode: new_result(case, mode, threads) for mode in modes}
    timers: dict[str, dict[str, Timer]] = {mode: {} for mode in modes}
    for name in names:
        try:
            contender = make(name, case, inputs, threads)
        except LeftOutError as e:
            for result in results.values():
                result["left_out"][name] = str(e)
            continue
        for mode, result in results.items():
            try:
                admit(name, contender, case, mode, pace)
                timer = Timer(contender, mode)
                result["error"][name] = check(case, timer.arrays, right)
                timers[mode][name] = timer
            except LeftOutError as e:
                result["left_out"][name] = str(e)
            except WrongError as e:
                result["wrong"][name] = str(e)
    for mode, result in results.items():
        result["seconds"] = take_turns(timers[mode], threads, pace)
    return list(results.values())


class Timer:
    """A contender's call in a mode: the arrays that its first one gave, and about its seconds."""

    def __init__(self, contender: Contender, mode: str) -> None:
        training = mode == "training"
        self.call = contender.train if training else contender.infer
        start = time.perf_counter()
        result = self.call()
        self.about = time.perf_counter() - start
        if training:
            self.arrays = {f"d_{name}": a for name, a in contender.gradients(result).items()}
        else:
            self.arrays = contender.answer(result)
        if contender.compiles or self.about < LONG:
            self.about = min(self.seconds(1) for _ in range(2))

    def seconds(self, repeats: int) -> float:
        """Seconds a call, over so many in a row."""
        return in_a_row(self.call, repeats)


def in_a_row(call: Callable[[], Any], repeats: int) -> float:
    """Seconds a call, over so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def new_result(case: Case, mode: str, threads: int) -> Result:
    """What JSON holds of a case in a mode.

    "seconds" a call by contender, one figure a turn; "error" of what was checked, in tolerances;
    who was "left_out" and who was "wrong", and why.
    """
    empty: Result = {"seconds": {}, "error": {}, "left_out": {}, "wrong": {}}
    return {"case": case.asdict(), "mode": mode, "threads": threads, **empty}


def admit(name: str, contender: Contender, case: Case, mode: str, pace: Pace) -> None:
    """Raise LeftOutError for who cannot train, and who would take too long."""
    if mode == "training" and not contender.can_train:
        raise LeftOutError("infers only")
    if name == "MLX" and case.L > 20:
        fewer = replace(case, L=case.L // 20)
        seconds = 20 * Timer(make(name, fewer, draw(fewer), 1), mode).about
        if seconds > pace.patience:
            raise LeftOutError(f"{TOO_LONG}{seconds:.1f} s a call")


def take_turns(timers: dict[str, Timer], threads: int, pace: Pace) -> dict[str, list[float]]:
    """Seconds a call, by contender, one figure a turn, in another order each time.

    What one leaves behind, threads that spin and caches that are full, strikes whoever comes next.
    """
    about = {name: timer.about for name, timer in timers.items()}
    repeats = {name: max(1, round(A_WHILE / seconds)) for name, seconds in about.items()}
    slow = {name for name in about if about[name] > max(A_WHILE, SLOW * min(about.values()))}
    a_turn = sum(max(A_WHILE, about[name]) for name in about.keys() - slow)
    turns = min(pace.turns, max(pace.fewest, int(pace.budget / max(a_turn, A_WHILE))))
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    order, rng = list(timers), random.Random(0)
    gc.collect()
    gc.disable()
    for turn in range(turns):
        rng.shuffle(order)
        for name in order:
            if name in slow and turn >= pace.turns_if_slow:
                continue
            if threads > 1:
                time.sleep(PAUSE)
            if about[name] < LONG:
                timers[name].call()  # its weights back into the caches, its threads awake
            seconds[name].append(timers[name].seconds(repeats[name]))
    gc.enable()
    return seconds
