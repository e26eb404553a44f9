"""
The compiled engine: one layer of one or two directions, forward and backward, on the CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import CapsuleType


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

LARGE: int = 16384

def empty(shape: Sequence[int], is_float64: bool) -> object:
    """
    A new array, float64 or float32, in memory that the engine keeps for the next one when it is freed: for a result of LARGE values and more.
    """

class Module:
    """A layer or cell of the NumPy package, from each layer's Weights."""

    def __init__(self, layers: Sequence[object], batch_first: bool, drops_out: bool, is_cell: bool) -> None: ...

    @property
    def call(self) -> Callable[..., Any]:
        """
        call(x, states, threads, lengths, reset, training), of a cell the first three: its results, or None where the call is not for the engine alone.
        """

    @property
    def record(self) -> Callable[..., Any]:
        """
        record(x, states, threads, lengths, reset, training, recompute), of a layer: its results and their Tape, or None.
        """

class Tape:
    """What a Module's recorded call keeps for the way back."""

    @property
    def backward(self) -> Callable[..., Any]:
        """
        backward(d_output, d_states): the gradients of x, of each state and of every weight, or None where these are not for the engine alone.
        """

class Stream:
    """A Module's steps, of layers of one direction, from zeros."""

    def __init__(self, module: object, rows: int, threads: int) -> None: ...

    @property
    def step(self) -> Callable[..., Any]:
        """
        step(x, out): of x (rows, D) the output (rows, P), or of one row (D) and (P), in `out` unless that is None; or None where the step is not for the engine alone.
        """

    @property
    def states(self) -> Any:
        """
        Every layer's state (layers, rows, S): the stream's own memory, until its next step.
        """

class TensorCall:
    """A call of one of PyTorch's modules, as its node has it."""

    @property
    def cell(self) -> str: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def directions(self) -> int: ...

    def spread(self, tensors: list) -> list:
        """
        x, h_0, c_0, lengths, reset and five weights a part, None where absent, from the node's tensors.
        """

    @property
    def is_cell(self) -> bool: ...

    @property
    def is_batched(self) -> bool: ...

    @property
    def batch_first(self) -> bool: ...

    @property
    def recompute(self) -> bool: ...

class TensorCalls:
    """Calls of PyTorch's modules, from what is used of PyTorch, by name."""

    def __init__(self, torch: dict) -> None: ...

    @property
    def apply(self) -> object:
        """Of the node whose forward and backward these are."""

    @apply.setter
    def apply(self, arg: object | None, /) -> None: ...

    @property
    def run(self) -> object:
        """
        run(mode, attributes, x, hx, lengths=None, reset=None): the module's results, or None where the call is not for the engine alone.
        """

    @property
    def forward(self) -> object:
        """forward(ctx, call, *tensors): the node's."""

    @property
    def backward(self) -> object:
        """backward(ctx, gradients): those of forward's arguments, or None."""

def xla_forward() -> CapsuleType:
    """A handler of XLA's typed FFI."""

def xla_backward() -> CapsuleType:
    """A handler of XLA's typed FFI."""

def set_threads_of_xla_calls(threads: int) -> None:
    """How many threads a call that XLA makes may take."""

def poison_buffers(on: bool) -> None:
    """For tests: fill scratch memory with NaN before use."""

def always_wait(on: bool) -> None:
    """For tests: threads are waited for, though others have the processors."""
