"""A recurrent layer written to be obvious: one row and one step at a time, from cells.py alone.

It shares no loop, no masking and no differentiation with the package. A row is run over the steps
that it has; what its steps did is noted on a list, and backward walks that list from its end.
"""

import itertools

import numpy as np

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def assert_close(got, want, dtype=None, name=""):
    """Equal but for rounding: the difference is small beside the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: {got.shape}, expected {want.shape}"
    if not want.size:
        return
    tolerance = TOLERANCE[str(dtype or got.dtype)]
    worst = np.abs(got - want).max()
    assert worst <= tolerance * np.abs(want).max(), f"{name}: off by {worst}"


def assert_all_close(got, want, dtype=None):
    """assert_close for dictionaries."""
    assert list(got) == list(want)
    for name in want:
        assert_close(got[name], want[name], dtype, name)


def assert_same_bits(got, want, name=""):
    """Equal to the last bit, the sign of zero and all."""
    got, want = np.asarray(got), np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), name
    if got.tobytes() != want.tobytes():
        differ = np.argwhere(got != want)
        raise AssertionError(f"{name}: {len(differ)} values differ, the first at {differ[:1]}")


def assert_all_same_bits(got, want):
    """assert_same_bits for dictionaries."""
    assert list(got) == list(want)
    for name in want:
        assert_same_bits(got[name], want[name], name)


def run(cell, weights, x, h_0, *, lengths=None, reset=None, masks=None):
    """Run the layer that has these weights, by PyTorch's names.

    x (L, N, D), h_0 (K, N, H), lengths (N,), reset (L, N), masks: one for the output of each layer
    but the last. Everything is taken as float64. Returns output, h_n and
    vjp(d_output, d_h_n), which gives the gradients of x, h_0 and every weight by name.
    """
    weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}
    x, h_0 = np.asarray(x, np.float64), np.asarray(h_0, np.float64)
    steps, batch, _ = x.shape
    lengths = [steps] * batch if lengths is None else [int(n) for n in lengths]
    reset = np.zeros((steps, batch), bool) if reset is None else np.asarray(reset)
    directions = 2 if "weight_ih_l0_reverse" in weights else 1
    layers = len(h_0) // directions
    hidden = h_0.shape[-1]

    h_n = h_0.copy()
    inputs, rows = [], {}
    below = x
    for layer in range(layers):
        if layer > 0 and masks is not None:
            below = below * masks[layer - 1]
        inputs.append(below)
        output = np.zeros((steps, batch, directions * hidden))
        for direction, n in itertools.product(range(directions), range(batch)):
            k = layer * directions + direction
            w = _weights(weights, layer, direction)
            row = Row(cell, w, below[: lengths[n], n], h_0[k, n], reset[:, n], direction == 1)
            output[: lengths[n], n, direction * hidden : (direction + 1) * hidden] = row.output
            h_n[k, n] = row.h_n
            rows[layer, direction, n] = row
        below = output

    def vjp(d_output, d_h_n):
        d_output = np.zeros_like(output) if d_output is None else np.asarray(d_output, np.float64)
        d_h_n = np.zeros_like(h_n) if d_h_n is None else np.asarray(d_h_n, np.float64)
        gradients = {"x": None, "h_0": np.zeros_like(h_0)}
        gradients.update({name: np.zeros_like(w) for name, w in weights.items()})
        for layer in reversed(range(layers)):
            d_below = np.zeros_like(inputs[layer])
            for direction, n in itertools.product(range(directions), range(batch)):
                k = layer * directions + direction
                columns = slice(direction * hidden, (direction + 1) * hidden)
                d_x, d_h_0, d_w = rows[layer, direction, n].backward(
                    d_output[: lengths[n], n, columns], d_h_n[k, n]
                )
                d_below[: lengths[n], n] += d_x
                gradients["h_0"][k, n] = d_h_0
                for name, d in zip(_names(layer, direction), d_w, strict=True):
                    if name in gradients:
                        gradients[name] += d
            d_output = d_below if layer == 0 or masks is None else d_below * masks[layer - 1]
        return {**gradients, "x": d_output}

    return output, h_n, vjp


def _names(layer, direction):
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    return [name + suffix for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _weights(weights, layer, direction):
    return [weights.get(name, 0.0) for name in _names(layer, direction)]


class Row:
    """One row, one direction of one layer: x (steps, D), h_0 (H)."""

    def __init__(self, cell, weights, x, h_0, reset, reverse):
        self.cell, self.weights, self.x = cell, weights, x
        w_ih, w_hh, b_ih, b_hh = weights
        self.output = np.zeros((len(x), len(h_0)))
        self.steps = []  # in the order taken: t, fresh, gates of x, gates of h, state before
        h = h_0
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            # A new episode begins at t: forward has just entered it. In reverse, one that begins
            # at t + 1 has just been left.
            fresh = (t + 1 < len(x) and reset[t + 1]) if reverse else reset[t]
            if fresh:
                h = np.zeros_like(h)
            gates_x, gates_h = w_ih @ x[t] + b_ih, w_hh @ h + b_hh
            self.steps.append((t, fresh, gates_x, gates_h, h))
            h = cell.forward(gates_x, gates_h, h, np)
            self.output[t] = h
        self.h_n = h

    def backward(self, d_output, d_h):
        w_ih, w_hh, _, _ = self.weights
        d_x = np.zeros_like(self.x)
        d_w_ih, d_w_hh = np.zeros_like(w_ih), np.zeros_like(w_hh)
        d_b_ih, d_b_hh = np.zeros(len(w_ih)), np.zeros(len(w_hh))
        for t, fresh, gates_x, gates_h, h in reversed(self.steps):
            d = d_h + d_output[t]
            d_gates_x, d_gates_h, d_h = self.cell.backward(d, gates_x, gates_h, h, np)
            d_x[t] = d_gates_x @ w_ih
            d_h = np.zeros_like(h) if fresh else d_h + d_gates_h @ w_hh
            d_w_ih += np.outer(d_gates_x, self.x[t])
            d_w_hh += np.outer(d_gates_h, h)
            d_b_ih += d_gates_x
            d_b_hh += d_gates_h
        return d_x, d_h, (d_w_ih, d_w_hh, d_b_ih, d_b_hh)
