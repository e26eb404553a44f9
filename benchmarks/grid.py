"""What is measured: the layers, their sizes, and the inputs, which every contender shares."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Case:
    """One layer and its input: L steps, N rows, D features, H hidden units."""

    cell: str  # "GRU" or "RNN"
    L: int
    N: int
    D: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    lengths: tuple[int, int] | None = None  # rows' lengths are drawn from this range

    def __str__(self) -> str:
        name = f"{self.cell} ({self.L}, {self.N}, {self.D}, {self.H})"
        if self.num_layers > 1 or self.bidirectional:
            name += f" {self.num_layers} layers" + (", both ways" if self.bidirectional else "")
        return name + (" lengths {}..{}".format(*self.lengths) if self.lengths else "")


class Inputs(NamedTuple):
    """The arrays of a case, float32."""

    x: np.ndarray  # (L, N, D)
    lengths: np.ndarray | None  # (N,)
    d_output: np.ndarray  # (L, N, directions*H), the gradient that training starts from


def inputs(case: Case) -> Inputs:
    """Draw a case's arrays, the same at every call."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((case.L, case.N, case.D), dtype=np.float32)
    width = case.H * (2 if case.bidirectional else 1)
    d_output = rng.standard_normal((case.L, case.N, width), dtype=np.float32)
    if case.lengths is None:
        return Inputs(x, None, d_output)
    low, high = case.lengths
    lengths = rng.integers(low, high + 1, case.N)
    lengths[0] = case.L
    return Inputs(x, lengths, d_output)


#: One step at a time, reinforcement learning, audio, time series, and larger models.
SHAPES = [
    (1, 1, 64, 64),
    (100, 1, 32, 64),
    (100, 1, 128, 256),
    (100, 1, 512, 512),
    (16000, 1, 1, 24),
    (20, 256, 16, 32),
    (1000, 8, 64, 64),
    (100, 16, 128, 128),
    (100, 32, 256, 256),
    (100, 64, 512, 512),
    (50, 128, 512, 1024),
]

GRID = [
    *(Case(cell, *shape) for cell in ("GRU", "RNN") for shape in SHAPES),
    *(
        case
        for cell in ("GRU", "RNN")
        for case in (
            Case(cell, 100, 16, 128, 128, num_layers=2, bidirectional=True),
            Case(cell, 500, 32, 64, 128, lengths=(50, 500)),
        )
    ),
]

QUICK = [
    Case("GRU", 1, 1, 64, 64),
    Case("GRU", 100, 1, 32, 64),
    Case("GRU", 100, 16, 128, 128),
    Case("GRU", 100, 64, 512, 512),
    Case("RNN", 100, 16, 128, 128),
    Case("GRU", 100, 16, 128, 128, num_layers=2, bidirectional=True),
    Case("GRU", 500, 32, 64, 128, lengths=(50, 500)),
]

#: mlx.nn has one layer, one direction and no lengths, and takes its time.
MLX = [Case("GRU", 100, 1, 32, 64), Case("GRU", 100, 32, 256, 256)]
