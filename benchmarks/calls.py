"""Measure what a call costs: PyTorch's cells and layers at one step, stock and Elman's, in turns.

Both have the same weights and input; their results, and gradients of every weight, are compared
first. Ratios are taken turn by turn. One thread, held to one processor.

Example:
    python -m benchmarks.calls --cell GRU --shape 1,64,64
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import measure, peaks

#: Cells that torch.nn has, too.
CELLS = ("GRU", "LSTM", "RNN")
#: Steps of a loop of cells that is trained.
STEPS = 50
#: (N, D, H)
SHAPES = [(1, 1, 1), (1, 64, 64), (8, 64, 64), (32, 64, 128), (128, 256, 512), (1, 512, 512)]
PACE = measure.Pace(turns=15, fewest=5, budget=2, turns_if_slow=5, patience=0)


class Call(NamedTuple):
    """What is timed: microseconds are those of one step."""

    name: str
    mode: str
    shape: tuple[int, int, int]


class Timer:
    """A call for ``measure.take_turns``."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.about = min(self.seconds(2) for _ in range(3))

    def seconds(self, repeats: int) -> float:
        """Seconds a call, over so many in a row."""
        return measure.in_a_row(self.call, repeats)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--shape", nargs="+", type=shape, default=SHAPES, help="N,D,H")
    parser.add_argument("--output", type=Path, default=Path("build/bench/calls.json"))
    options = parser.parse_args()
    measure.hold(peaks.available()[:1])
    cases = [(cell, shape) for cell in options.cell for shape in options.shape]
    found: dict[Call, dict[str, list[float]]] = {}
    for cell, shape_ in track(cases, "calls", console=Console(stderr=True), transient=True):
        for call, ways in calls(cell, *shape_).items():
            timers: Any = {who: Timer(way) for who, way in ways.items()}
            found[call] = measure.take_turns(timers, 1, PACE)
    show(found, options.shape)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**call._asdict(), "seconds": seconds} for call, seconds in found.items()]
    options.output.write_text(json.dumps(rows, indent=1))
    print(f"saved in {options.output}")


def shape(text: str) -> tuple[int, ...]:
    """(N, D, H)."""
    N, D, H = (int(size) for size in text.split(","))
    return N, D, H


def calls(cell: str, N: int, D: int, H: int) -> dict[Call, dict[str, Callable[[], Any]]]:
    """A step of a cell and of a layer, in inference and in training, of both."""
    import torch

    import elman.torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, h = torch.randn(STEPS, N, D), torch.zeros(N, H)
    state: Any = (h, h.clone()) if cell == "LSTM" else h
    made: dict[Call, dict[str, Callable[[], Any]]] = {}
    for name, ways in ((f"{cell}Cell", (step, loop)), (cell, (layer, train_layer))):
        modules = [getattr(package, name)(D, H) for package in (torch.nn, elman.torch)]
        modules[1].load_state_dict(modules[0].state_dict())
        for mode, way in zip(("inference", "training"), ways, strict=True):
            stock, ours = (way(module, x, state) for module in modules)
            compare(modules, stock(), ours())
            made[Call(name, mode, (N, D, H))] = {"torch.nn": stock, "elman.torch": ours}
    return made


def step(module: Any, x: Any, state: Any) -> Callable[[], Any]:
    """One step of a cell."""
    import torch

    first = x[0]

    def call() -> Any:
        with torch.no_grad():
            return module(first, state)

    return call


def loop(module: Any, x: Any, state: Any) -> Callable[[], Any]:
    """A loop of cells, and backward."""
    import torch

    steps, d = list(x), torch.ones_like(x[0, :, :1]).expand(-1, module.hidden_size).contiguous()

    def call() -> Any:
        module.zero_grad()
        carried = state
        for x in steps:
            carried = module(x, carried)
        h = carried[0] if isinstance(carried, tuple) else carried
        h.backward(d)
        return h.detach()

    return call


def layer(module: Any, x: Any, _: Any) -> Callable[[], Any]:
    """A layer of one step."""
    import torch

    first = x[:1]

    def call() -> Any:
        with torch.no_grad():
            return module(first)[0]

    return call


def train_layer(module: Any, x: Any, _: Any) -> Callable[[], Any]:
    """The same, and backward."""
    import torch

    first = x[:1]
    d = torch.ones(1, x.shape[1], module.hidden_size)

    def call() -> Any:
        module.zero_grad()
        output = module(first)[0]
        output.backward(d)
        return output.detach()

    return call


def compare(modules: list[Any], *results: Any) -> None:
    """The same results and gradients, but for rounding."""
    import torch

    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    for stock, ours in zip(*(module.parameters() for module in modules), strict=True):
        if stock.grad is not None:
            torch.testing.assert_close(ours.grad, stock.grad, rtol=1e-3, atol=1e-4)


def show(found: dict[Call, dict[str, list[float]]], shapes: list[tuple[int, ...]]) -> None:
    """A row a class and mode, a column a shape."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(
        title="Calls, one thread: a step of torch.nn over one of elman.torch (microseconds of "
        f"both); training is a loop of {STEPS} and backward, or a layer's call and backward",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("(N, D, H)")
    for each in shapes:
        table.add_column(str(each), justify="right", no_wrap=True)
    for name, mode in dict.fromkeys((call.name, call.mode) for call in found):
        cells = [ratio(Call(name, mode, each), found) for each in shapes]  # pyright: ignore
        table.add_row(f"{name}, {mode}", *cells)
    console.print(table)


def ratio(call: Call, found: dict[Call, dict[str, list[float]]]) -> str:
    """The median of the turns' ratios, and a step's microseconds of both."""
    stock, ours = (found[call][who] for who in ("torch.nn", "elman.torch"))
    steps = STEPS if call.mode == "training" and call.name.endswith("Cell") else 1
    times = "/".join(f"{1e6 * median(seconds) / steps:.3g}" for seconds in (stock, ours))
    return f"{median(s / o for s, o in zip(stock, ours, strict=True)):.2f} ({times})"


if __name__ == "__main__":
    main()
