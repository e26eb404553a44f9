"""The reference loop over time around a cell, on any library's arrays.

Short and slow: what the kernels are tested against, and what runs where they cannot, under the
array library's own differentiation. ``xp`` is the library: numpy, torch, or another with tanh,
where, zeros_like, stack and concatenate.

A layer's state is one vector a row, here as in all that lies below the packages: h, or an LSTM's
[h | c], of S features. Its first P are h: the output, and what meets W_hh.

What ``lengths`` and ``reset`` mean, here as everywhere:

- Steps at or past a row's length are not computed: x is not read there, output is 0, and the final
  state is the one after the row's last step. The reverse direction starts at each row's last step.
- ``reset`` at t starts a new episode there. Nothing crosses from t-1 to t in either direction:
  forward starts from zeros at t, reverse from zeros at t-1.
"""

from typing import Any

from elman.cells import project
from elman.spec import Cell, Weights


def layer(
    cell: Cell,
    x: Any,
    h_0: Any,
    weights: list[Weights],
    *,
    xp: Any,
    lengths: Any = None,
    reset: Any = None,
    whole: bool = False,
) -> tuple[Any, Any]:
    """One layer of one or two directions.

    x (L, N, D), h_0 (directions, N, S), one :class:`Weights` a direction, lengths (N,), reset
    (L, N). Returns output (L, N, directions*P), or with `whole` every state (L, N, directions*S),
    and h_n (directions, N, S).
    """
    extent = (lengths, reset, whole)
    runs = [scan(cell, x, h_0[0, ...], weights[0], xp, *extent)]
    if len(weights) == 2:
        runs.append(scan(cell, x, h_0[1, ...], weights[1], xp, *extent, reverse=True))
    outputs, finals = zip(*runs, strict=True)
    return xp.concatenate(outputs, -1), xp.stack(finals)


def scan(
    cell: Cell,
    x: Any,
    h: Any,
    weights: Weights,
    xp: Any,
    lengths: Any = None,
    reset: Any = None,
    whole: bool = False,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """One direction: x (L, N, D), h (N, S). Returns output (L, N, P) and the final state.

    With `whole` every state (L, N, S) takes the output's place.
    """
    w_ih, b_ih = weights.w_ih, weights.b_ih
    features = h.shape[-1] if whole else weights.w_hh.shape[-1]
    steps = range(x.shape[0])
    if not steps:
        return (x @ w_ih.T)[..., :features], h
    inside = None if lengths is None else [(t < lengths)[:, None] for t in steps]
    if inside is not None:
        x = xp.stack([xp.where(inside[t], x[t], xp.zeros_like(x[t])) for t in steps])
    x_gates = x @ w_ih.T
    if b_ih is not None:
        x_gates = x_gates + b_ih
    outputs: list[Any] = []
    for t in reversed(steps) if reverse else steps:
        start = _cut(h, t + 1 if reverse else t, lengths, reset, xp)
        # [t, ...]: of a bare [t] MLX makes a gather, which has no second derivative.
        after = step(cell, x_gates[t, ...], start, weights, xp)
        output = _output(after, features)
        if inside is None:
            h = after
            outputs.append(output)
        else:
            h = xp.where(inside[t], after, h)
            outputs.append(xp.where(inside[t], output, xp.zeros_like(output)))
    return xp.stack(outputs[::-1] if reverse else outputs), h


def step(cell: Cell, x: Any, state: Any, weights: Weights, xp: Any) -> Any:
    """The state after a step, from x = W_ih x_t + b_ih (N, G*H) and the state before (N, S)."""
    P = weights.w_hh.shape[-1]
    u = _recurrent(cell, x, _output(state, P), weights.w_hh, weights.b_hh, xp)
    if len(cell.states) == 1:
        return cell.forward(x, u, state, xp)
    h, c = cell.forward(x, u, state[..., P:], xp)
    return xp.concatenate([h if weights.w_hr is None else project(h, weights.w_hr), c], -1)


def _recurrent(cell: Cell, x: Any, h: Any, w_hh: Any, b_hh: Any, xp: Any) -> Any:
    """W_hh h + b_hh of every gate; of a last one that waits, by what the others make of h."""
    if cell.gated is None:
        return _affine(h, w_hh, b_hh)
    prompt, last = slice(w_hh.shape[0] - h.shape[-1]), slice(-h.shape[-1], None)
    u = _affine(h, w_hh[prompt], None if b_hh is None else b_hh[prompt])
    gated = cell.gated(x, u, h, xp)
    u_last = _affine(gated, w_hh[last], None if b_hh is None else b_hh[last])
    return xp.concatenate([u, u_last], -1)


def _affine(h: Any, w: Any, b: Any) -> Any:
    return h @ w.T if b is None else h @ w.T + b


def _output(state: Any, features: int) -> Any:
    """The first features of a state: those that are h, or all."""
    return state if state.shape[-1] == features else state[..., :features]


def _cut(h: Any, t: int, lengths: Any, reset: Any, xp: Any) -> Any:
    """The state h that is about to cross into or out of an episode that starts at t."""
    if reset is None or t == reset.shape[0]:
        return h
    starts = reset[t] if lengths is None else reset[t] & (t < lengths)
    return xp.where(starts[:, None], xp.zeros_like(h), h)
