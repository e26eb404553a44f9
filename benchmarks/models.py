"""Measure models of which recurrent layers are a part: PyTorch's own, and the same accelerated.

The tagger is an Embedding, two bidirectional layers and a Linear; training is the loss, backward
and Adam. The stream is a convolution, a layer and a Linear, which are given a chunk at a time and
carry their state. Stock and accelerated models have the same weights; outputs, losses and gradients
are compared first. They take turns with the rest: the same model with next to nothing in place of
its layers, whose weights Adam goes on moving. Ratios, and the layers' share of the time, are taken
turn by turn. One thread, held to one processor.

Example:
    python -m benchmarks.models --model tagger --cell GRU --shape 50,32,64,128
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import measure, peaks
from .calls import Timer, compare
from .run import machine, shape, versions

if TYPE_CHECKING:
    from torch import Tensor, nn

CELLS = ("GRU", "LSTM")
#: (L, N, D, H) of each model; of a stream L are the frames of a chunk.
SHAPES = {
    "tagger": [(100, 1, 32, 64), (30, 32, 64, 128), (50, 64, 128, 256)],
    "stream": [(1, 1, 32, 64), (8, 1, 64, 128), (50, 1, 64, 256)],
}
WORDS, CLASSES = 1000, 20
HOP = 80  # samples from a frame to the next
STEPS = 4  # that are compared before anything is timed
PACE = measure.Pace(turns=15, fewest=5, budget=4, turns_if_slow=5, patience=0)
STOCK, OURS, REST = "torch.nn", "elman.torch", "the rest"


class Case(NamedTuple):
    """What is timed."""

    model: str
    cell: str
    mode: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.model}, {self.cell}, {self.mode} {self.shape}"


Found = dict[str, list[float]]  # seconds a call by who it is, one figure a turn


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--shape", nargs="+", type=shape, help="L,N,D,H in place of the model's")
    parser.add_argument("--output", type=Path, default=Path("build/bench/models.json"))
    options = parser.parse_args()
    measure.hold(peaks.available()[:1])
    cases = [
        (model, cell, each)
        for model in options.model
        for each in options.shape or SHAPES[model]
        for cell in options.cell
    ]
    found: dict[Case, Found] = {}
    for model, cell, each in track(cases, "models", console=Console(stderr=True), transient=True):
        for mode, ways in calls(model, cell, *each).items():
            timers: Any = {who: Timer(way) for who, way in ways.items()}
            found[Case(model, cell, mode, each)] = measure.take_turns(timers, 1, PACE)
    show(found)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**case._asdict(), "seconds": seconds} for case, seconds in found.items()]
    run = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine()}
    options.output.write_text(json.dumps({**run, "versions": versions(), "models": rows}, indent=1))
    print(f"saved in {options.output}")


def calls(
    model: str, cell: str, L: int, N: int, D: int, H: int
) -> dict[str, dict[str, Callable[[], Any]]]:
    """By mode, a call of the stock model, of the accelerated one, and of the rest of it."""
    import torch

    import elman.torch

    torch.set_num_threads(1)
    elman.set_num_threads(1)
    torch.manual_seed(0)
    stock = {"tagger": tagger, "stream": stream}[model](cell, D, H)
    ours, rest = copy.deepcopy(stock), copy.deepcopy(stock)
    elman.torch.accelerate(ours)
    rest.layers = nothing(rest.layers)
    models = {STOCK: stock, OURS: ours, REST: rest}
    if model == "stream":
        chunks = torch.randn(STEPS, N, 1, L * HOP)
        made = {"inference": {who: streaming(m, chunks) for who, m in models.items()}}
    else:
        words = torch.randint(WORDS, (L, N))
        classes = torch.randint(CLASSES, (L, N))
        made = {
            "inference": {who: inference(m, words) for who, m in models.items()},
            "training": {who: training(m, words, classes) for who, m in models.items()},
        }
    for ways in made.values():
        for _ in range(STEPS):
            compare([stock, ours], ways[STOCK](), ways[OURS]())
    return made


def tagger(cell: str, D: int, H: int) -> nn.Module:
    """Words (L, N) to the logits of a class each (L, N, CLASSES)."""
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(WORDS, D)
            self.layers = getattr(nn, cell)(D, H, num_layers=2, bidirectional=True)
            self.head = nn.Linear(2 * H, CLASSES)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.layers(self.embedding(words))[0])

    return Tagger()


def stream(cell: str, D: int, H: int) -> nn.Module:
    """Samples (N, 1, L * HOP) to logits (L, N, CLASSES), from where the last call ended."""
    import torch
    from torch import nn

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(1, D, 2 * HOP, HOP)
            self.layers = getattr(nn, cell)(D, H)
            self.head = nn.Linear(H, CLASSES)

        def forward(self, samples: Tensor, past: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
            samples = torch.cat([past, samples], -1)
            frames = self.convolution(samples).relu().permute(2, 0, 1)
            output, state = self.layers(frames, state)
            return self.head(output), samples[..., -HOP:], state

    return Stream()


def nothing(layers: Any) -> nn.Module:
    """In place of layers: their input beside zeros as output, and the same weights."""
    from torch import nn
    from torch.nn import functional as F

    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(layers.parameters())

        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            width = layers.hidden_size * (2 if layers.bidirectional else 1)
            return F.pad(x, (0, width - x.shape[-1])), state

    return Nothing()


def inference(model: Any, words: Tensor) -> Callable[[], Tensor]:
    """A call without gradients."""
    import torch

    @torch.inference_mode()
    def call() -> Tensor:
        return model(words)

    return call


def streaming(model: Any, chunks: Tensor) -> Callable[[], Tensor]:
    """A chunk, each time the next, from the state that the last one left."""
    import torch

    at, past, state = 0, torch.zeros(chunks.shape[1], 1, HOP), None

    @torch.inference_mode()
    def call() -> Tensor:
        nonlocal at, past, state
        logits, past, state = model(chunks[at % len(chunks)], past, state)
        at += 1
        return logits

    return call


def training(model: Any, words: Tensor, classes: Tensor) -> Callable[[], Tensor]:
    """A step, of which the loss comes out."""
    import torch
    from torch.nn import functional as F

    optimizer = torch.optim.Adam(model.parameters())
    # Weights of layers that are not there have gradients all the same, which Adam is to take.
    constant = {w: torch.full_like(w, 1e-3) for w in getattr(model.layers, "weights", ())}

    def call() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(words).flatten(0, 1), classes.flatten())
        loss.backward()
        for weight, gradient in constant.items():
            weight.grad = gradient
        optimizer.step()
        return loss.detach()

    return call


def show(found: dict[Case, Found]) -> None:
    """A row a case."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title="Models, one thread: torch.nn over elman.torch", box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for case, seconds in found.items():
        table.add_row(*row(case, seconds))
    console.print(table)


#: Times as fast is stock over accelerated; of the rest, the models are without their layers.
COLUMNS = (
    "model, mode (L, N, D, H)",
    "times as fast",
    "ms, both",
    "ms, the rest",
    "layers' share, both",
)


def row(case: Case, seconds: Found) -> tuple[str, ...]:
    """The ratio, milliseconds of both and of the rest, and how much of both are the layers."""
    stock, ours, rest = (seconds[who] for who in (STOCK, OURS, REST))
    ratio = median(s / o for s, o in zip(stock, ours, strict=False))  # slow ones have fewer turns
    times = " / ".join(f"{1e3 * median(each):.3g}" for each in (stock, ours))
    shares = " / ".join(f"{share(each, rest):.0%}" for each in (stock, ours))
    return str(case), f"{ratio:.2f}", times, f"{1e3 * median(rest):.3g}", shares


def share(whole: list[float], rest: list[float]) -> float:
    """Of the time of the whole, what is not the rest's."""
    return median(1 - r / w for w, r in zip(whole, rest, strict=False))


if __name__ == "__main__":
    main()
