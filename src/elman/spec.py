"""What a layer is: its cell, its sizes, its weights by name, and what it takes.

The one place for names, shapes, gate order, initialisation and shape checks. Nothing here computes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from elman import cells

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """A row of the table of cells.

    Attributes
    ----------
    name : the engine's name for it.
    gates : the blocks of H rows in each weight, in order.
    kept : values a unit and step that the engine keeps for backward, the state before apart.
    forward, backward : the equations, in ``cells.py``.
    """

    name: str
    gates: tuple[str, ...]
    kept: int
    forward: Callable[..., Any]
    backward: Callable[..., Any]


CELLS = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", ("h",), 1, cells.rnn_tanh, cells.rnn_tanh_backward),
        Cell("rnn_relu", ("h",), 1, cells.rnn_relu, cells.rnn_relu_backward),
        Cell("gru", ("reset", "update", "new"), 4, cells.gru, cells.gru_backward),
    )
}


#: PyTorch's names of the weights, in the order of :class:`Weights`.
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def weight_names(layer: int, direction: int) -> list[str]:
    """PyTorch's names of one direction's weights; without bias the last two do not exist."""
    return [f"{name}_l{layer}{'_reverse' if direction else ''}" for name in WEIGHTS]


#: Beyond these no layer could be built, and an attempt would take all memory, or for ever.
MOST = {"input_size": 2**31 - 1, "hidden_size": 2**29 - 1, "num_layers": 2**16}


class Weights(NamedTuple):
    """One direction of one layer: (G*H, D), (G*H, H), and two biases (G*H), or None."""

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None


@dataclass(frozen=True)
class Spec:
    """Sizes and options of a layer, as PyTorch's constructors take them, checked.

    Letters used throughout: L steps, N rows of the batch, D input features, H hidden units,
    G gates of the cell, K = num_layers * directions.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False

    def __post_init__(self):
        for name in ("input_size", "hidden_size", "num_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{self}: {name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{self}: {name} must be at least 1, got {value}")
            if value > MOST[name]:
                raise ValueError(f"{self}: {name} must be at most {MOST[name]}")
        for name in ("bias", "batch_first", "bidirectional"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{self}: {name} must be a bool, got {value!r}")
        dropout: Any = self.dropout
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
            raise TypeError(f"{self}: dropout must be a number, got {dropout!r}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"{self}: dropout must lie in [0, 1], got {self.dropout}")

    def __str__(self) -> str:
        return self.title

    @property
    def title(self) -> str:
        """The layer's name in errors: GRU or RNN."""
        return "GRU" if self.cell.name == "gru" else "RNN"

    @property
    def directions(self) -> int:
        """1, or 2 where bidirectional."""
        return 2 if self.bidirectional else 1

    def weight_shapes(self) -> dict[str, Shape]:
        """Name and shape of every weight, in PyTorch's order."""
        shapes: dict[str, Shape] = {}
        for layer in range(self.num_layers):
            size = self.input_size if layer == 0 else self.directions * self.hidden_size
            for direction in range(self.directions):
                shapes.update(self._shapes(weight_names(layer, direction), size))
        return shapes

    def cell_weight_shapes(self) -> dict[str, Shape]:
        """The same for a cell, whose names have no suffix."""
        return self._shapes(list(WEIGHTS), self.input_size)

    def _shapes(self, names: list[str], input_size: int) -> dict[str, Shape]:
        rows = len(self.cell.gates) * self.hidden_size
        shapes = [(rows, input_size), (rows, self.hidden_size), (rows,), (rows,)]
        return dict(list(zip(names, shapes, strict=True))[: 4 if self.bias else 2])

    def bound(self) -> float:
        """Every weight begins uniform in [-bound, bound]."""
        return 1 / math.sqrt(self.hidden_size)


def check_weights(
    title: str, expected: Mapping[str, Shape], given: Mapping[str, Shape], error: type[Exception]
) -> None:
    """Raise unless `given` has exactly the expected names and shapes."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    if missing or unexpected:
        raise error(f"{title}: weights missing: {missing}, unexpected: {unexpected}")
    for name, shape in expected.items():
        if tuple(given[name]) != shape:
            raise error(f"{title}: {name} must have shape {shape}, got {tuple(given[name])}")


def check_input(spec: Spec, shape: Shape, error: type[Exception]) -> None:
    """X must be (L, N, D), (N, L, D) with batch_first, or (L, D)."""
    axes = "(N, L, D)" if spec.batch_first else "(L, N, D)"
    if len(shape) not in (2, 3) or shape[-1] != spec.input_size:
        raise error(f"{spec}: x must be {axes} or (L, D) with D = {spec.input_size}, got {shape}")


def check_state(spec: Spec, shape: Shape, batch: Shape, error: type[Exception]) -> None:
    """h_0 must be (K, N, H), or (K, H) without a batch; `batch` is (N,) or ()."""
    expected = (spec.num_layers * spec.directions, *batch, spec.hidden_size)
    if shape != expected:
        raise error(f"{spec}: h_0 must have shape {expected}, got {shape}")


def takes(layer: Any, x: Shape, h_0: Shape | None, batch: int | None = None) -> bool:
    """Whether torch's layer, or OneFlow's, would take such shapes. If not, it says so best itself.

    `layer` has torch's attributes. x is (L, N, D), (N, L, D) with batch_first, (L, D), or packed,
    (rows, D), with its `batch`; there must be a step.
    """
    if layer.proj_size or len(x) not in ((2, 3) if batch is None else (2,)):
        return False
    time = 1 if layer.batch_first and len(x) == 3 else 0
    if x[-1] != layer.input_size or 0 in (x[time], layer.num_layers):
        return False
    rows = () if len(x) == 2 else (x[1 - time],)
    if batch is not None:
        if batch > x[0]:
            return False
        rows = (batch,)
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    return h_0 is None or h_0 == (states, *rows, layer.hidden_size)


def check_lengths(
    title: str, shape: Shape, integral: bool, batch: Shape, error: type[Exception]
) -> None:
    """Lengths must be integers shaped as the batch: (N,), or () without one."""
    if shape != batch or not integral:
        kind = "integers" if integral else "another type"
        raise error(f"{title}: lengths must be integers of shape {batch}, got {kind} of {shape}")


def check_lengths_lie_within(
    title: str, lengths: Iterable[int], steps: int, error: type[Exception]
) -> None:
    """Lengths must lie between 0 and L. The engine sees to it by itself."""
    for n, length in enumerate(lengths):
        if not 0 <= length <= steps:
            raise error(
                f"{title}: lengths must lie between 0 and L = {steps}, got {length} for row {n}"
            )


def check_reset(
    title: str, shape: Shape, boolean: bool, expected: Shape, error: type[Exception]
) -> None:
    """Reset must be booleans shaped as x's time and batch axes."""
    if shape != expected or not boolean:
        kind = "booleans" if boolean else "another type"
        raise error(f"{title}: reset must be booleans of shape {expected}, got {kind} of {shape}")
