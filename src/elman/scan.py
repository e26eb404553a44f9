"""The reference loop over time around a cell, on any library's arrays.

Short and slow: what the kernels are tested against, and what runs where they cannot, under the
array library's own differentiation. ``xp`` is the library: numpy, torch, or another with tanh,
where, zeros_like, stack and concatenate.

What ``lengths`` and ``reset`` mean, here as everywhere:

- Steps at or past a row's length are not computed: x is not read there, output is 0, and the final
  state is the one after the row's last step. The reverse direction starts at each row's last step.
- ``reset`` at t starts a new episode there. Nothing crosses from t-1 to t in either direction:
  forward starts from zeros at t, reverse from zeros at t-1.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
# (arrays of any library have no common type)

from elman.spec import Cell, Weights


def layer(cell: Cell, x, h_0, weights: list[Weights], *, xp, lengths=None, reset=None):
    """One layer of one or two directions.

    x (L, N, D), h_0 (directions, N, H), one :class:`Weights` a direction, lengths (N,), reset
    (L, N). Returns output (L, N, directions*H) and h_n (directions, N, H).
    """
    outputs, finals = [], []
    for i, direction in enumerate(weights):
        output, h = scan(
            cell, x, h_0[i], direction, xp=xp, lengths=lengths, reset=reset, reverse=i == 1
        )
        outputs.append(output)
        finals.append(h)
    return xp.concatenate(outputs, -1), xp.stack(finals)


def scan(cell: Cell, x, h, weights: Weights, *, xp, lengths=None, reset=None, reverse=False):
    """One direction: x (L, N, D), h (N, H). Returns output (L, N, H) and the final state."""
    w_ih, w_hh, b_ih, b_hh = weights
    if lengths is not None:
        runs = [(t < lengths)[:, None] for t in range(x.shape[0])]
        x = xp.stack([xp.where(run, x[t], xp.zeros_like(x[t])) for t, run in enumerate(runs)])
    x_gates = x @ w_ih.T
    if b_ih is not None:
        x_gates = x_gates + b_ih
    outputs = []
    for t in _times(x.shape[0], reverse):
        start = _cut(h, t + 1 if reverse else t, lengths, reset, xp)
        u_gates = start @ w_hh.T
        if b_hh is not None:
            u_gates = u_gates + b_hh
        after = cell.forward(x_gates[t], u_gates, start, xp)
        if lengths is None:
            h = after
            outputs.append(after)
        else:
            h = xp.where(runs[t], after, h)
            outputs.append(xp.where(runs[t], after, xp.zeros_like(after)))
    return xp.stack(outputs[::-1] if reverse else outputs), h


def _times(steps: int, reverse: bool):
    return reversed(range(steps)) if reverse else range(steps)


def _cut(h, t: int, lengths, reset, xp):
    """The state h that is about to cross into or out of an episode that starts at t."""
    if reset is None or t == reset.shape[0]:
        return h
    starts = reset[t] if lengths is None else reset[t] & (t < lengths)
    return xp.where(starts[:, None], xp.zeros_like(h), h)
