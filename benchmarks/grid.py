"""What is measured: the layers, their sizes, and the arrays that every contender is given."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from elman.spec import CELLS as SPECS
from elman.spec import Spec

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class Case:
    """One layer and its input: L steps, N rows, D features, H hidden units."""

    cell: str  # one of CELLS
    L: int
    N: int
    D: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    lengths: tuple[int, int] | None = None  # rows' lengths are drawn from this range

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Case":
        """The case that :meth:`asdict` wrote, also after it went through JSON."""
        lengths = fields["lengths"]
        return cls(**{**fields, "lengths": tuple(lengths) if lengths else None})

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.L, self.N, self.D, self.H

    @property
    def name(self) -> str:
        """Everything but the cell."""
        name = "({}, {}, {}, {})".format(*self.shape)
        if self.lengths:
            name += " lengths {}-{}".format(*self.lengths)
        if self.num_layers > 1 or self.bidirectional:
            name += f" {self.num_layers} layers" + (", both ways" if self.bidirectional else "")
        return name

    def __str__(self) -> str:
        return f"{self.cell} {self.name}"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def spec(self) -> Spec:
        options = {"num_layers": self.num_layers, "bidirectional": self.bidirectional}
        return Spec(SPECS[CELLS[self.cell]], self.D, self.H, **options)

    @property
    def kind(self) -> str:
        """The class that has it: GRU, LSTM or RNN."""
        return self.spec.cell.kind

    @property
    def resets_before(self) -> bool:
        """Whether it is the GRU that torch and MLX have not."""
        return self.spec.cell.gated is not None

    @property
    def own_options(self) -> dict[str, bool]:
        """What Elman's class has to be told."""
        return {"reset_after": False} if self.resets_before else {}

    @property
    def gates(self) -> int:
        return len(self.spec.cell.gates)

    @property
    def states(self) -> tuple[str, ...]:
        """What is carried from step to step: h, or an LSTM's h and c."""
        return self.spec.cell.states

    @property
    def rows(self) -> int:
        """Steps that are computed: those past a row's length are not."""
        drawn = draw_lengths(self)
        return self.L * self.N if drawn is None else int(drawn.sum())

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights under torch's names."""
        return self.spec.weight_shapes()

    def flops(self, mode: str) -> int:
        """Additions and multiplications of the matrix products, 2*rows*G*H*(D + H) a layer.

        Training takes three times as many: each product has two in the backward pass, one for the
        gradient of its input and one for that of its weight.
        """
        matrices = [s for s in self.weight_shapes().values() if len(s) == 2]
        forward = 2 * self.rows * sum(rows * columns for rows, columns in matrices)
        return forward * (3 if mode == "training" else 1)

    @property
    def recurrent_bytes(self) -> int:
        """The bytes of W_hh, of all layers and directions."""
        shapes = self.weight_shapes()
        return FLOAT * sum(s[0] * s[1] for name, s in shapes.items() if "weight_hh" in name)

    def bytes_read(self, mode: str) -> int:
        """What a lone row has to read of W_hh: all of it at every step, in training also back."""
        return self.recurrent_bytes * self.L * (2 if mode == "training" else 1)


class Inputs(NamedTuple):
    """The arrays of a case, float32; K = num_layers * directions.

    States and their gradients are by the state's name, "h", and an LSTM's "c".
    """

    x: np.ndarray  # (L, N, D)
    states: dict[str, np.ndarray]  # (K, N, H): before the first step
    lengths: np.ndarray | None  # (N,) int64
    d_output: np.ndarray  # (L, N, directions*H): what training starts its way back from
    d_states: dict[str, np.ndarray]  # (K, N, H): the same of the states after the last step
    weights: dict[str, np.ndarray]  # by torch's names


def draw_lengths(case: Case) -> np.ndarray | None:
    """The rows' lengths, the same at every call; one row takes all steps."""
    if case.lengths is None:
        return None
    low, high = case.lengths
    lengths = np.random.default_rng(1).integers(low, high + 1, case.N)
    lengths[0] = case.L
    return lengths


def draw(case: Case) -> Inputs:
    """A case's arrays, the same at every call."""
    rng = np.random.default_rng(0)
    state = (case.num_layers * case.directions, case.N, case.H)
    bound = case.H**-0.5

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return Inputs(
        x=normal(case.L, case.N, case.D),
        states={name: normal(*state) / 2 for name in case.states},
        lengths=draw_lengths(case),
        d_output=normal(case.L, case.N, case.directions * case.H),
        d_states={name: normal(*state) for name in case.states},
        weights={
            name: rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in case.weight_shapes().items()
        },
    )


#: The time of a call that has next to nothing to compute.
OVERHEAD = (1, 1, 1, 1)
STREAMING = (1, 1, 64, 64)

SHAPES: list[tuple[tuple[int, int, int, int], dict[str, Any]]] = [
    (STREAMING, {}),
    ((100, 1, 32, 64), {}),
    ((100, 1, 128, 256), {}),
    ((100, 1, 512, 512), {}),
    (AUDIO := (16000, 1, 1, 24), {}),  # a second of it
    ((20, 256, 16, 32), {}),  # reinforcement learning
    ((1000, 8, 64, 64), {}),
    ((100, 16, 128, 128), {}),
    ((100, 16, 128, 128), {"num_layers": 2, "bidirectional": True}),
    ((500, 32, 64, 128), {"lengths": (50, 500)}),
    ((100, 32, 256, 256), {}),
    ((100, 64, 512, 512), {}),
    (LARGEST := (50, 128, 512, 1024), {}),
]

#: What they are like.
LIKE = {
    STREAMING: "one streaming step",
    (100, 1, 32, 64): "a sensor",
    (100, 1, 128, 256): "a sensor, a larger model",
    (100, 1, 512, 512): "one row, a large model",
    AUDIO: "a second of audio",
    (20, 256, 16, 32): "reinforcement learning",
    (1000, 8, 64, 64): "long series",
    (100, 16, 128, 128): "a batch of series",
    (500, 32, 64, 128): "lengths from 50 to 500",
    (100, 32, 256, 256): "a larger model",
    (100, 64, 512, 512): "a middle-sized model",
    LARGEST: "a large one",
}

#: Nobody has work for two threads there.
FOR_ONE_THREAD = (OVERHEAD, STREAMING, AUDIO)

#: Their names in ``spec.CELLS``.
CELLS = {"GRU": "gru", "LSTM": "lstm", "RNN": "rnn_tanh", "GRU-reset-before": "gru_reset_before"}
MODES = ("inference", "training")
GRID = [Case(cell, *shape, **options) for cell in CELLS for shape, options in SHAPES]
#: What one process per contender trains, for its peak of resident memory.
MEMORY = Case("GRU", 100, 64, 512, 512)
