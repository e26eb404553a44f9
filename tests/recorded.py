"""Cases recorded from PyTorch's own layers: `cases()` lists them, `Case` is one.

A case holds what the layer was built from, what it was given, and what came out, forward and
backward, as the file has them. Packed cases are given as padded arrays and lengths. An LSTM's state
is (h, c), where an RNN's or a GRU's is h.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reference import whole

FIXTURES = Path(__file__).parent / "fixtures" / "torch"


def cases():
    """The names of all cases."""
    return sorted(path.stem for path in FIXTURES.glob("*.npz"))


@dataclass(frozen=True)
class Case:
    """One recorded call, and the gradients of sum(output * d_output) + sum(h_n * d_h_n)."""

    name: str
    kind: str  # RNN, GRU, LSTM, or one of these with Cell behind it
    arguments: dict[str, Any]  # of the constructor
    dtype: str
    training: bool
    enforce_sorted: bool  # as packing was asked for
    loop: bool  # a cell: x holds steps, each state goes into the next step; output holds all
    weights: dict[str, np.ndarray]
    x: np.ndarray
    h_0: np.ndarray | None
    lengths: np.ndarray | None  # not None: packed
    output: np.ndarray  # of max(lengths) steps where packed
    h_n: np.ndarray | None  # None: one step of a cell, whose output it is
    d_output: np.ndarray
    d_h_n: np.ndarray | None
    gradients: dict[str, np.ndarray]  # "x", the states unless None, and every weight by name
    c_0: np.ndarray | None = None
    c_n: np.ndarray | None = None
    d_c_n: np.ndarray | None = None

    @property
    def is_cell(self):
        return self.kind.endswith("Cell")

    @property
    def batch_first(self):
        return self.arguments.get("batch_first", False) and self.x.ndim == 3

    @property
    def state(self):
        """What the layer or the cell is given: None, h_0, or (h_0, c_0)."""
        return None if self.h_0 is None else _state(self.h_0, self.c_0)

    @property
    def final(self):
        """The state that comes out. One step of a cell gives nothing else."""
        return _state(self.output if self.h_n is None else self.h_n, self.c_n)

    @property
    def d_final(self):
        """Its gradient."""
        return _state(self.d_output if self.d_h_n is None else self.d_h_n, self.d_c_n)

    @classmethod
    def load(cls, name):
        with np.load(FIXTURES / f"{name}.npz") as file:
            arrays = dict(file)
        meta = json.loads(str(arrays.pop("meta")))

        def named(prefix):
            return {k[len(prefix) :]: a for k, a in arrays.items() if k.startswith(prefix)}

        gradients = {"x": arrays["grad.input"]}
        gradients |= {k: arrays[f"grad.{k}"] for k in ("h_0", "c_0") if f"grad.{k}" in arrays}
        return cls(
            name=name,
            kind=meta["class"].removeprefix("torch.nn."),
            arguments=meta["args"],
            dtype=meta["dtype"],
            training=meta.get("training", False),
            enforce_sorted=meta.get("enforce_sorted", True),
            loop=meta.get("loop", False),
            weights=named("weight."),
            x=arrays["input"],
            h_0=arrays.get("h_0"),
            lengths=arrays.get("lengths"),
            output=arrays["output"],
            h_n=arrays.get("h_n"),
            d_output=arrays["G"],
            d_h_n=arrays.get("Gh"),
            gradients=gradients | named("grad.weight."),
            c_0=arrays.get("c_0"),
            c_n=arrays.get("c_n"),
            d_c_n=arrays.get("Gc"),
        )


def _state(h, c):
    return whole([a for a in (h, c) if a is not None])
