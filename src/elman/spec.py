"""What a layer is: its cell, its sizes, its weights by name, and what it takes.

The one place for names, shapes, gate order, initialisation and shape checks. Nothing here computes.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple, cast

from elman import cells

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """A row of the table of cells.

    Attributes
    ----------
    name : the engine's name for it.
    kind : the class that has it: RNN, GRU or LSTM.
    gates : the blocks of H rows in each weight, in order.
    states : what is carried from step to step. h comes first: it is the output, and what meets
        W_hh. The last one is what the cell itself reads of the state before: h, or an LSTM's c.
    kept : values a unit and step that the engine keeps for backward, the states apart.
    forward, backward : the equations, in ``cells.py``.
    gated, gated_backward : where the last gate waits for the others, what its rows of W_hh meet in
        place of h; also there.
    """

    name: str
    kind: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    kept: int
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    gated: Callable[..., Any] | None = None
    gated_backward: Callable[..., Any] | None = None

    def state_size(self, hidden_size: int, output_size: int) -> int:
        """S, the values a row of a layer's state: its states one behind the other, [h | c]."""
        return output_size + (len(self.states) - 1) * hidden_size


_RNN = ("RNN", ("h",), ("h",), 0)
_GRU = ("GRU", ("reset", "update", "new"), ("h",), 4)
CELLS = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", *_RNN, cells.rnn_tanh, cells.rnn_tanh_backward),
        Cell("rnn_relu", *_RNN, cells.rnn_relu, cells.rnn_relu_backward),
        Cell("gru", *_GRU, cells.gru, cells.gru_backward),
        Cell(
            "gru_reset_before",
            *_GRU,
            cells.gru_reset_before,
            cells.gru_reset_before_backward,
            cells.reset_h,
            cells.reset_h_backward,
        ),
        Cell(
            "lstm",
            "LSTM",
            ("input", "forget", "cell", "output"),
            ("h", "c"),
            4,
            cells.lstm,
            cells.lstm_backward,
        ),
    )
}


def gru(title: str, reset_after: Any) -> Cell:
    """The GRU whose reset gate is applied after the recurrent product, or before it."""
    if not isinstance(reset_after, bool):
        raise TypeError(f"{title}: reset_after must be a bool, got {reset_after!r}")
    return CELLS["gru" if reset_after else "gru_reset_before"]


#: PyTorch's names of the weights, in the order of :class:`Weights`.
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def weight_names(layer: int, direction: int) -> list[str]:
    """PyTorch's names of one direction's weights, in the order of :class:`Weights`.

    Without bias there are none of the biases' names, and ``weight_hr`` with a projection alone.
    """
    return [f"{name}_l{layer}{'_reverse' if direction else ''}" for name in WEIGHTS]


#: Beyond these no layer could be built, and an attempt would take all memory, or for ever.
MOST = {"input_size": 2**31 - 1, "hidden_size": 2**29 - 1, "num_layers": 2**16}


class Weights(NamedTuple):
    """One direction of one layer: (G*H, D), (G*H, P), two biases (G*H), and (P, H), or None."""

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None
    w_hr: Any = None


@dataclass(frozen=True)
class Spec:
    """Sizes and options of a layer, as PyTorch's constructors take them, checked.

    Letters used throughout: L steps, N rows of the batch, D input features, H hidden units,
    P output features of a direction (H, but for a projection), S values of a row's state (P, or
    P + H where there is a c), G gates of the cell, K = num_layers * directions.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0

    def __post_init__(self):
        for name in ("input_size", "hidden_size", "num_layers", "proj_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{self}: {name} must be an int, got {value!r}")
            if name == "proj_size":
                continue
            if value < 1:
                raise ValueError(f"{self}: {name} must be at least 1, got {value}")
            if value > MOST[name]:
                raise ValueError(f"{self}: {name} must be at most {MOST[name]}")
        if self.proj_size and len(self.cell.states) == 1:
            raise ValueError(f"{self}: proj_size is for an LSTM, got {self.proj_size}")
        if not 0 <= self.proj_size < self.hidden_size:
            raise ValueError(
                f"{self}: proj_size must lie between 0 and hidden_size - 1 = "
                f"{self.hidden_size - 1}, got {self.proj_size}"
            )
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
        """The layer's name in errors: RNN, GRU or LSTM."""
        return self.cell.kind

    @property
    def directions(self) -> int:
        """1, or 2 where bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """P, the features of one direction's output and of its h."""
        return self.proj_size or self.hidden_size

    @property
    def state_sizes(self) -> dict[str, int]:
        """The features of each state: of h, and of an LSTM's c."""
        return dict(zip(self.cell.states, (self.output_size, self.hidden_size), strict=False))

    def weight_shapes(self) -> dict[str, Shape]:
        """Name and shape of every weight, in PyTorch's order."""
        shapes: dict[str, Shape] = {}
        for layer in range(self.num_layers):
            size = self.input_size if layer == 0 else self.directions * self.output_size
            for direction in range(self.directions):
                shapes.update(self._shapes(weight_names(layer, direction), size))
        return shapes

    def cell_weight_shapes(self) -> dict[str, Shape]:
        """The same for a cell, whose names have no suffix."""
        return self._shapes(list(WEIGHTS), self.input_size)

    def _shapes(self, names: list[str], input_size: int) -> dict[str, Shape]:
        rows = len(self.cell.gates) * self.hidden_size
        projection = (self.output_size, self.hidden_size)
        shapes = Weights((rows, input_size), (rows, self.output_size), (rows,), (rows,), projection)
        there = (True, True, self.bias, self.bias, self.proj_size > 0)
        return dict(compress(zip(names, shapes, strict=True), there))

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
        got = tuple(given[name])
        if got != shape:
            why = f"{name} must have shape {shape}, got {got}"
            raise error(f"{title}: {_of_another_kind(expected, given)}{why}")


def _of_another_kind(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> str:
    """Whose weights they are, where every matrix has as many gates as another kind of cell."""
    sizes: set[tuple[int, int]] = set()
    for name, shape in expected.items():
        off = [pair for pair in zip(shape, given[name], strict=False) if len(set(pair)) > 1]
        if len(shape) > 1 and len(off) != 1:  # another hidden size shows in two axes
            return ""
        sizes.update(off)
    for ours, theirs in itertools.permutations(CELLS.values(), 2):
        gates = len(ours.gates), len(theirs.gates)
        if gates[0] != gates[1] and all(a * gates[1] == b * gates[0] for a, b in sizes):
            return f"{theirs.kind} weights where {ours.kind} weights are expected: "
    return ""


def check_input(spec: Spec, shape: Shape, error: type[Exception]) -> None:
    """X must be (L, N, D), (N, L, D) with batch_first, or (L, D)."""
    axes = "(N, L, D)" if spec.batch_first else "(L, N, D)"
    if len(shape) not in (2, 3) or shape[-1] != spec.input_size:
        raise error(f"{spec}: x must be {axes} or (L, D) with D = {spec.input_size}, got {shape}")


def check_state(spec: Spec, name: str, shape: Shape, batch: Shape, error: type[Exception]) -> None:
    """h_0 must be (K, N, P), c_0 (K, N, H), without N if no batch; `batch` is (N,) or ()."""
    expected = (spec.num_layers * spec.directions, *batch, spec.state_sizes[name])
    if shape != expected:
        raise error(f"{spec}: {name}_0 must have shape {expected}, got {shape}")


def each_of(title: str, names: Sequence[str], values: Any) -> Sequence[Any]:
    """One value a name, as a tuple or a list."""
    given = cast(Sequence[Any], values)
    is_sequence = isinstance(values, (tuple, list))
    if not is_sequence or len(given) != len(names):
        got = f"{len(given)} of them" if is_sequence else type(given)
        raise TypeError(f"{title}: expected ({', '.join(names)}), got {got}")
    return given


def takes(layer: Any, x: Shape, states: Sequence[Shape], batch: int | None = None) -> bool:
    """Whether torch's layer, or OneFlow's, would take such shapes. If not, it says so best itself.

    `layer` has torch's attributes. x is (L, N, D), (N, L, D) with batch_first, (L, D), or packed,
    (rows, D), with its `batch`; there must be a step, if only of no row. `states` are those of h_0
    and of an LSTM's c_0, or none.
    """
    if len(x) not in ((2, 3) if batch is None else (2,)):
        return False
    time = 1 if layer.batch_first and len(x) == 3 else 0
    if x[-1] != layer.input_size or layer.num_layers == 0 or (batch is None and x[time] == 0):
        return False
    rows = () if len(x) == 2 else (x[1 - time],)
    if batch is not None:
        if batch > x[0]:
            return False
        rows = (batch,)
    K = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: len(states)]
    # As many of both: to torch.compile of torch 2.6 every zip is strict.
    pairs = zip(states, sizes, strict=True)
    return all(tuple(shape) == (K, *rows, size) for shape, size in pairs)


def check_lengths(
    title: str,
    shape: Shape,
    integral: bool,
    batch: Shape,
    error: type[Exception],
    dtype: Any = "another type",
) -> None:
    """Lengths must be integers shaped as the batch: (N,), or () without one."""
    if shape != batch or not integral:
        kind = "integers" if integral else dtype
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
    title: str,
    shape: Shape,
    boolean: bool,
    expected: Shape,
    error: type[Exception],
    dtype: Any = "another type",
) -> None:
    """Reset must be booleans shaped as x's time and batch axes."""
    if shape != expected or not boolean:
        kind = "booleans" if boolean else dtype
        raise error(f"{title}: reset must be booleans of shape {expected}, got {kind} of {shape}")
