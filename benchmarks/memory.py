"""What training takes of memory: a process for each contender, which trains one case.

A process reports its peak of resident memory, and how much of it was there before training: the
interpreter, the framework, the arrays. A layer of PyTorch, ours or torch's, also tells how many
bytes it keeps between forward and backward, other than its inputs and weights.
"""

import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from . import peaks
from .contenders import make
from .grid import Case, draw

#: Who is asked: a name for the table, the contender, and options of its constructor.
WHO: list[tuple[str, str, dict[str, Any]]] = [
    ("elman", "elman", {}),
    ("elman.torch", "elman.torch", {}),
    ("elman.torch, recompute", "elman.torch", {"recompute": True}),
    ("torch", "torch", {}),
    ("JAX", "JAX", {}),
]


def run(connection: Connection, processor: int, case: Case, name: str, options: Any) -> None:
    """Train a case and send the bytes that it took. Runs in a new process."""
    peaks.pin([processor])
    contender = make(name, case, draw(case), 1, **options)
    before = resident()
    contender.train()
    found = {"before": before, "peak": resident()}
    if name in ("elman.torch", "torch"):
        found["kept_a_row"] = kept(contender) / case.rows
    connection.send(found)
    connection.close()


def resident() -> int:
    """The peak of this process's resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def kept(contender: Any) -> int:
    """The bytes that autograd keeps for the way back, each piece of memory counted once."""
    import torch

    pieces: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaves = contender.leaves.values()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = contender.run(*contender.inputs.values())
    given = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    del result  # until here, so that no piece takes the place of another
    return sum(size for address, size in pieces.items() if address not in given)
