"""
The compiled engine: one layer of one or two directions, forward and backward, on the CPU.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


def isa() -> str:
    """The instruction set in use: portable, avx2 or avx512."""

class Weights:
    """
    One layer's weights, packed when first used; they must not change afterwards.
    """

    def __init__(self, cell: str, arrays: Sequence[Annotated[NDArray, dict(device='cpu', writable=False)] | None]) -> None: ...

    @property
    def directions(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

def forward(weights: Weights, x: Annotated[NDArray, dict(device='cpu', writable=False)], output: Annotated[NDArray, dict(device='cpu')], h_n: Annotated[NDArray, dict(device='cpu')], h_0: Annotated[NDArray, dict(device='cpu', writable=False)] | None, lengths: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, reset: Annotated[NDArray[numpy.bool_], dict(shape=(None, None), device='cpu', writable=False)] | None, batch_sizes: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, gates: Annotated[NDArray, dict(device='cpu')] | None, states: Annotated[NDArray, dict(device='cpu')] | None, threads: int) -> None:
    """
    Fills output (L, N, directions*H) and h_n (directions, N, H), and what backward needs where asked: gates (directions, rows, kept*H) and states (directions, rows, H), rows = L*N or those of the packed x.
    """

def backward(weights: Weights, x: Annotated[NDArray, dict(device='cpu', writable=False)], gates: Annotated[NDArray, dict(device='cpu', writable=False)] | None, states: Annotated[NDArray, dict(device='cpu', writable=False)], d_output: Annotated[NDArray, dict(device='cpu', writable=False)] | None, d_h_n: Annotated[NDArray, dict(device='cpu', writable=False)] | None, d_x: Annotated[NDArray, dict(device='cpu')] | None, d_h_0: Annotated[NDArray, dict(device='cpu')], d_weights: Sequence[Annotated[NDArray, dict(device='cpu')] | None] | None, lengths: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, reset: Annotated[NDArray[numpy.bool_], dict(shape=(None, None), device='cpu', writable=False)] | None, batch_sizes: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, threads: int) -> None:
    """
    Fills d_x (directions, *x.shape), d_h_0 (directions, N, H) and d_weights, arrays as the weights are.
    """

def poison_buffers(on: bool) -> None:
    """For tests: fill scratch memory with NaN before use."""
