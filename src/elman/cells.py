"""The equations. Everything else in Elman computes these, faster.

Each cell is two short functions on plain arrays, for any number of leading axes:

- ``cell(x, u, h, xp)`` gives h', the state after one step. ``x = W_ih x_t + b_ih`` and
  ``u = W_hh h + b_hh`` hold the cell's gates one behind the other, (..., G*H); ``h`` is the state
  before, (..., H).
- ``cell_backward(d, x, u, h, xp)`` takes d, the gradient of h', and gives the gradients of x, u
  and h.

``xp`` is the array library: numpy, torch, or another with tanh, where,
zeros_like and concatenate.
The same equations for vector registers stand in ``kernels/cpu/cells.h``, and are tested against
these.
"""

from typing import Any


def sigmoid(a: Any, xp: Any) -> Any:
    """1 / (1 + exp(-a)), written so that nothing overflows."""
    return 0.5 + 0.5 * xp.tanh(0.5 * a)


def split(a: Any, gates: int) -> list[Any]:
    """Cut the last axis into its gates."""
    size = a.shape[-1] // gates
    return [a[..., i * size : (i + 1) * size] for i in range(gates)]


def rnn_tanh(x: Any, u: Any, h: Any, xp: Any) -> Any:
    """Elman RNN: h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    Elman, "Finding Structure in Time", Cognitive Science 14 (1990).
    """
    return xp.tanh(x + u)


def rnn_tanh_backward(d: Any, x: Any, u: Any, h: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Gradients of :func:`rnn_tanh`."""
    d_a = d * (1 - xp.tanh(x + u) ** 2)
    return d_a, d_a, xp.zeros_like(h)


def rnn_relu(x: Any, u: Any, h: Any, xp: Any) -> Any:
    """Elman RNN: h' = max(0, W_ih x + b_ih + W_hh h + b_hh)."""
    a = x + u
    return xp.where(a < 0, xp.zeros_like(a), a)  # NaN stays NaN


def rnn_relu_backward(d: Any, x: Any, u: Any, h: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Gradients of :func:`rnn_relu`; 0 where its argument is 0."""
    d_a = xp.where(x + u <= 0, xp.zeros_like(d), d)
    return d_a, d_a, xp.zeros_like(h)


def gru(x: Any, u: Any, h: Any, xp: Any) -> Any:
    """GRU, its reset gate applied after the recurrent product.

    ::

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)          reset gate
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)          update gate
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn)) candidate
        h' = (1 - z) * n + z * h

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014, in the
    form that cuDNN and PyTorch compute.
    """
    x_r, x_z, x_n = split(x, 3)
    u_r, u_z, u_n = split(u, 3)
    r = sigmoid(x_r + u_r, xp)
    z = sigmoid(x_z + u_z, xp)
    n = xp.tanh(x_n + r * u_n)
    return (1 - z) * n + z * h


def gru_backward(d: Any, x: Any, u: Any, h: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Gradients of :func:`gru`."""
    x_r, x_z, x_n = split(x, 3)
    u_r, u_z, u_n = split(u, 3)
    r = sigmoid(x_r + u_r, xp)
    z = sigmoid(x_z + u_z, xp)
    n = xp.tanh(x_n + r * u_n)
    d_n = d * (1 - z) * (1 - n * n)
    d_r = d_n * u_n * r * (1 - r)
    d_z = d * (h - n) * z * (1 - z)
    d_x = xp.concatenate([d_r, d_z, d_n], -1)
    d_u = xp.concatenate([d_r, d_z, d_n * r], -1)
    return d_x, d_u, d * z
