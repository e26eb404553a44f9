"""The equations. Everything else in Elman computes these, faster.

Each cell is two short functions on plain arrays, for any number of leading axes:

- ``cell(x, u, h, xp)`` gives h', the state after one step. ``x = W_ih x_t + b_ih`` and
  ``u = W_hh h + b_hh`` hold the cell's gates one behind the other, (..., G*H); ``h`` is the state
  before, (..., H).
- ``cell_backward(d, x, u, h, xp)`` takes d, the gradient of h', and gives the gradients of x, u
  and h.

A cell with two states reads the second one, c, in place of h, since it meets h in u alone; it gives
(h', c'), and its backward takes the gradients of both.

Where the last gate waits for the others, its rows of W_hh meet what a third function, of x, the
other gates' u, and h, makes of h. Its backward gives what comes by way of it: the gradient of x and
u, zeros but for the gate that made it, and that of h.

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


def gru_reset_before(x: Any, u: Any, h: Any, xp: Any) -> Any:
    """GRU, its reset gate applied before the recurrent product.

    ::

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)          reset gate
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)          update gate
        n  = tanh(W_in x + b_in + W_hn (r * h) + b_hn) candidate, of :func:`reset_h`
        h' = (1 - z) * n + z * h

    Cho et al. (2014), as they write it, but for their z, which is 1 - z here: ONNX's default, and
    Keras's ``reset_after=False``.
    """
    _, x_z, x_n = split(x, 3)
    _, u_z, u_n = split(u, 3)
    z = sigmoid(x_z + u_z, xp)
    return (1 - z) * xp.tanh(x_n + u_n) + z * h


def gru_reset_before_backward(d: Any, x: Any, u: Any, h: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Gradients of :func:`gru_reset_before`."""
    _, x_z, x_n = split(x, 3)
    _, u_z, u_n = split(u, 3)
    z = sigmoid(x_z + u_z, xp)
    n = xp.tanh(x_n + u_n)
    d_n = d * (1 - z) * (1 - n * n)
    d_z = d * (h - n) * z * (1 - z)
    d_a = xp.concatenate([xp.zeros_like(h), d_z, d_n], -1)
    return d_a, d_a, d * z


def reset_h(x: Any, u: Any, h: Any, xp: Any) -> Any:
    """What W_hn meets in :func:`gru_reset_before`: r * h."""
    H = h.shape[-1]
    return sigmoid(x[..., :H] + u[..., :H], xp) * h


def reset_h_backward(d: Any, x: Any, u: Any, h: Any, xp: Any) -> tuple[Any, Any]:
    """Gradients of :func:`reset_h`."""
    H = h.shape[-1]
    r = sigmoid(x[..., :H] + u[..., :H], xp)
    none = xp.zeros_like(h)
    return xp.concatenate([d * h * r * (1 - r), none, none], -1), d * r


def lstm(x: Any, u: Any, c: Any, xp: Any) -> tuple[Any, Any]:
    """LSTM. Returns h' and c'.

    ::

        i  = σ(W_ii x + b_ii + W_hi h + b_hi)          input gate
        f  = σ(W_if x + b_if + W_hf h + b_hf)          forget gate
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)       cell candidate
        o  = σ(W_io x + b_io + W_ho h + b_ho)          output gate
        c' = f * c + i * g
        h' = o * tanh(c')

    Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997), with the
    forget gate of Gers, Schmidhuber and Cummins, "Learning to Forget: Continual Prediction with
    LSTM", Neural Computation 12 (2000).
    With a projection h' is :func:`project`'s.
    """
    a_i, a_f, a_g, a_o = split(x + u, 4)
    c = sigmoid(a_f, xp) * c + sigmoid(a_i, xp) * xp.tanh(a_g)
    return sigmoid(a_o, xp) * xp.tanh(c), c


def lstm_backward(d: Any, x: Any, u: Any, c: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Gradients of :func:`lstm`; d holds those of h' and c'."""
    d_h, d_c = d
    a_i, a_f, a_g, a_o = split(x + u, 4)
    i, f, o = sigmoid(a_i, xp), sigmoid(a_f, xp), sigmoid(a_o, xp)
    g = xp.tanh(a_g)
    t = xp.tanh(f * c + i * g)
    d_c = d_c + d_h * o * (1 - t * t)
    d_i = d_c * g * i * (1 - i)
    d_f = d_c * c * f * (1 - f)
    d_g = d_c * i * (1 - g * g)
    d_o = d_h * t * o * (1 - o)
    d_a = xp.concatenate([d_i, d_f, d_g, d_o], -1)
    return d_a, d_a, d_c * f


def project(h: Any, w_hr: Any) -> Any:
    """The projection of an LSTM's h: h' = W_hr (o * tanh(c')), (..., H) to (..., P).

    Sak, Senior and Beaufays, "Long Short-Term Memory Based Recurrent Neural Network Architectures
    for Large Vocabulary Speech Recognition", arXiv 1402.1128 (2014).
    """
    return h @ w_hr.T
