"""Cases recorded from PyTorch's own layers: `cases()` lists them, `Case` is one.

A case holds what the layer was built from, what it was given, and what came out, forward and
backward, as the file has them. Packed cases are given as padded arrays and lengths.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures" / "torch"


def cases():
    """The names of all cases."""
    return sorted(path.stem for path in FIXTURES.glob("*.npz"))


@dataclass(frozen=True)
class Case:
    """One recorded call, and the gradients of sum(output * d_output) + sum(h_n * d_h_n)."""

    name: str
    kind: str  # RNN, GRU, RNNCell or GRUCell
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
    gradients: dict[str, np.ndarray]  # "x", "h_0" unless None, and every weight by name

    @property
    def is_cell(self):
        return self.kind.endswith("Cell")

    @property
    def batch_first(self):
        return self.arguments.get("batch_first", False) and self.x.ndim == 3

    @classmethod
    def load(cls, name):
        with np.load(FIXTURES / f"{name}.npz") as file:
            arrays = dict(file)
        meta = json.loads(str(arrays.pop("meta")))

        def named(prefix):
            return {k[len(prefix) :]: a for k, a in arrays.items() if k.startswith(prefix)}

        gradients = {"x": arrays["grad.input"]}
        if "grad.h_0" in arrays:
            gradients["h_0"] = arrays["grad.h_0"]
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
        )
