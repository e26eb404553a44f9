"""Layers one above the other, written once for all packages.

A layer is one or two directions, which the package or the engine runs together. What lies between
layers, and nothing else, is here.
"""

from collections.abc import Callable
from typing import Any


def run(
    num_layers: int,
    directions: int,
    layer: Callable[[int, Any, Any], tuple[Any, Any]],
    x: Any,
    h_0: Any,
    dropout: Callable[[Any], Any] | None = None,
) -> tuple[Any, list[Any]]:
    """Run every layer on the output of the one below.

    ``layer(k, x, h_0)`` gives layer k's output (L, N, directions*H) and final states
    (directions, N, H). ``h_0`` is (K, N, H) or None for zeros. ``dropout`` is applied between
    layers, never after the last. Returns the last output and each layer's final states.
    """
    finals: list[Any] = []
    for k in range(num_layers):
        if k > 0 and dropout is not None:
            x = dropout(x)
        below = _part(h_0, k, num_layers, directions)
        x, h_n = layer(k, x, below)
        finals.append(h_n)
    return x, finals


def _part(states: Any, k: int, num_layers: int, directions: int) -> Any:
    """Layer k's states of all: of one layer all, as a slice takes some frameworks a microsecond."""
    if states is None or num_layers == 1:
        return states
    return states[k * directions : (k + 1) * directions]


def run_backward(
    num_layers: int,
    directions: int,
    layer: Callable[[int, Any, Any], tuple[Any, Any]],
    d_output: Any,
    d_h_n: Any,
    dropout: Callable[[int, Any], Any] | None = None,
) -> tuple[Any, list[Any]]:
    """The way back: ``layer(k, d_output, d_h_n)`` gives layer k's d_x and d_h_0.

    ``dropout(k, d)`` is the gradient of the dropout above layer k. Returns d_x and each layer's
    d_h_0.
    """
    firsts: list[Any] = []
    for k in reversed(range(num_layers)):
        if k < num_layers - 1 and dropout is not None:
            d_output = dropout(k, d_output)
        above = _part(d_h_n, k, num_layers, directions)
        d_output, d_h_0 = layer(k, d_output, above)
        firsts.insert(0, d_h_0)
    return d_output, firsts
