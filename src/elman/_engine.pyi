"""
The compiled engine: one layer of one or two directions, forward and backward, on the CPU.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray


def isa() -> str:
    """The instruction set in use: portable, avx2 or avx512."""

class Weights:
    """
    One layer's weights, packed when first used; they must not change afterwards.
    """

    def __init__(self, cell: str, arrays: Sequence[Any | None]) -> None: ...

    @property
    def directions(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def output_size(self) -> int: ...

    @property
    def is_float64(self) -> bool:
        """Whether all else is, or float32."""

def forward(weights: Weights, x: Any, output: Any, h_n: Any, h_0: Any | None, lengths: Any | None, reset: Any | None, batch_sizes: Any | None, gates: Any | None, states: Any | None, threads: int) -> None:
    """
    Fills output (L, N, directions*P), or (L, N, directions*S) with every state, and the states h_n (directions, N, S), and what backward needs where asked: gates (directions, rows, kept*H) and states (directions, N + rows, S), rows = L*N or those of the packed x.
    """

def backward(weights: Weights, x: Any, gates: Any | None, states: Any, d_output: Any | None, d_h_n: Any | None, d_x: Any | None, d_h_0: Any, d_weights: Sequence[Any | None] | None, lengths: Any | None, reset: Any | None, batch_sizes: Any | None, threads: int) -> None:
    """
    Fills d_x (directions, *x.shape), d_h_0 (directions, N, S) and d_weights, arrays as the weights are.
    """

def empty(shape: Sequence[int], is_float64: bool) -> NDArray:
    """
    A new array, float64 or float32, in memory that the engine keeps for the next one when it is freed.
    """

def poison_buffers(on: bool) -> None:
    """For tests: fill scratch memory with NaN before use."""
