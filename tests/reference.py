"""A recurrent layer written to be obvious: one row and one step at a time, from cells.py alone.

It shares no loop, no masking and no differentiation with the package. A row is run over the steps
that it has; what its steps did is noted on a list, and backward walks that list from its end.
"""

import itertools

import numpy as np

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def parts(state):
    """A state as a tuple: of an RNN or a GRU (h,), of an LSTM (h, c), as the packages have it."""
    return state if isinstance(state, tuple) else (state,)


def whole(states):
    """The way back: h, or (h, c)."""
    return states[0] if len(states) == 1 else tuple(states)


def each(function, *states):
    """The function of h, and of c where there is one; of several states, of theirs together."""
    return whole([function(*same) for same in zip(*map(parts, states), strict=True)])


def state_of(spec, batch, array):
    """A layer's state: `array` of each part's shape, (K, *batch, P) for h, (K, *batch, H) for c."""
    layers = spec.num_layers * spec.directions
    return whole([array((layers, *batch, size)) for size in spec.state_sizes.values()])


def named(state, suffix):
    """A state's parts by name: h_n, and an LSTM's c_n, where the suffix is n."""
    return {f"{name}_{suffix}": a for name, a in zip("hc", parts(state), strict=False)}


def assert_close(got, want, dtype=None, name=""):
    """Equal but for rounding: the difference is small beside the largest value. Of states, each."""
    if isinstance(want, tuple):
        for each in zip(got, want, strict=True):
            assert_close(*each, dtype, name)
        return
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
    """Equal to the last bit, the sign of zero and all. Of states, each."""
    if isinstance(want, tuple):
        for each in zip(got, want, strict=True):
            assert_same_bits(*each, name)
        return
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


def run(cell, weights, x, state, *, lengths=None, reset=None, masks=None):
    """Run the layer that has these weights, by PyTorch's names.

    x (L, N, D), the state h_0 (K, N, P), or of an LSTM (h_0, c_0) with c_0 (K, N, H), lengths (N,),
    reset (L, N), masks: one for the output of each layer but the last. Everything is taken as
    float64. Returns output, h_n or (h_n, c_n), and vjp(d_output, d_h_n), whose second argument is
    (d_h_n, d_c_n) for an LSTM; None stands for zeros. It gives the gradients of x, h_0, c_0 and
    every weight by name.
    """
    weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}
    x, first = np.asarray(x, np.float64), [np.asarray(a, np.float64) for a in parts(state)]
    steps, batch, _ = x.shape
    lengths = [steps] * batch if lengths is None else [int(n) for n in lengths]
    reset = np.zeros((steps, batch), bool) if reset is None else np.asarray(reset)
    directions = 2 if "weight_ih_l0_reverse" in weights else 1
    layers = len(first[0]) // directions
    features = first[0].shape[-1]

    final = [a.copy() for a in first]
    inputs, rows = [], {}
    below = x
    for layer in range(layers):
        if layer > 0 and masks is not None:
            below = below * masks[layer - 1]
        inputs.append(below)
        output = np.zeros((steps, batch, directions * features))
        for direction, n in itertools.product(range(directions), range(batch)):
            k = layer * directions + direction
            w = _weights(weights, layer, direction)
            start = [a[k, n] for a in first]
            row = Row(cell, w, below[: lengths[n], n], start, reset[:, n], direction == 1)
            columns = slice(direction * features, (direction + 1) * features)
            output[: lengths[n], n, columns] = row.output
            for a, after in zip(final, row.final, strict=True):
                a[k, n] = after
            rows[layer, direction, n] = row
        below = output

    def vjp(d_output, d_state):
        d_output = np.zeros_like(output) if d_output is None else np.asarray(d_output, np.float64)
        given = [None] * len(final) if d_state is None else parts(d_state)
        d_final = [
            np.zeros_like(a) if d is None else np.asarray(d, np.float64)
            for a, d in zip(final, given, strict=True)
        ]
        d_first = [np.zeros_like(a) for a in first]
        d_weights = {name: np.zeros_like(w) for name, w in weights.items()}
        for layer in reversed(range(layers)):
            d_below = np.zeros_like(inputs[layer])
            for direction, n in itertools.product(range(directions), range(batch)):
                k = layer * directions + direction
                columns = slice(direction * features, (direction + 1) * features)
                d_x, d_start, d_w = rows[layer, direction, n].backward(
                    d_output[: lengths[n], n, columns], [d[k, n] for d in d_final]
                )
                d_below[: lengths[n], n] += d_x
                for a, d in zip(d_first, d_start, strict=True):
                    a[k, n] = d
                for name, d in zip(_names(layer, direction), d_w, strict=True):
                    if name in d_weights:
                        d_weights[name] += d
            d_output = d_below if layer == 0 or masks is None else d_below * masks[layer - 1]
        return {"x": d_output, **named(whole(d_first), "0"), **d_weights}

    return output, whole(final), vjp


def _names(layer, direction):
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [name + suffix for name in names]


def _weights(weights, layer, direction):
    """Zeros stand for biases that are not there; without a projection the last one is None."""
    w_ih, w_hh, b_ih, b_hh, w_hr = (weights.get(name) for name in _names(layer, direction))
    zeros = np.zeros(len(w_ih))
    return w_ih, w_hh, zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh, w_hr


class Row:
    """One row, one direction of one layer: x (steps, D), the state [h] (P), or [h, c] (P), (H)."""

    def __init__(self, cell, weights, x, state, reset, reverse):
        self.cell, self.weights, self.x = cell, weights, x
        w_ih, w_hh, b_ih, b_hh, w_hr = weights
        self.output = np.zeros((len(x), len(state[0])))
        # In the order taken: t, fresh, gates of x, of h, state before, what the last gate met in
        # place of h, unprojected
        self.steps = []
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            # A new episode begins at t: forward has just entered it. In reverse, one that begins
            # at t + 1 has just been left.
            fresh = (t + 1 < len(x) and reset[t + 1]) if reverse else reset[t]
            if fresh:
                state = [np.zeros_like(a) for a in state]
            gates_x, gates_h = w_ih @ x[t] + b_ih, w_hh @ state[0] + b_hh
            met = None
            if cell.gated:  # and met by the last gate in place of h
                met, H = cell.gated(gates_x, gates_h, state[0], np), len(state[0])
                gates_h[-H:] = w_hh[-H:] @ met + b_hh[-H:]
            after = parts(cell.forward(gates_x, gates_h, state[-1], np))
            self.steps.append((t, fresh, gates_x, gates_h, state, met, after[0]))
            state = [after[0] if w_hr is None else w_hr @ after[0], *after[1:]]
            self.output[t] = state[0]
        self.final = state

    def backward(self, d_output, d_state):
        w_ih, w_hh, _, _, w_hr = self.weights
        d_x = np.zeros_like(self.x)
        d_w_ih, d_w_hh, d_b_ih, d_b_hh = (np.zeros_like(w) for w in self.weights[:4])
        d_w_hr = None if w_hr is None else np.zeros_like(w_hr)
        for t, fresh, gates_x, gates_h, state, met, unprojected in reversed(self.steps):
            d_h = d_state[0] + d_output[t]
            if w_hr is not None:
                d_w_hr += np.outer(d_h, unprojected)
                d_h = w_hr.T @ d_h
            d = whole([d_h, *d_state[1:]])
            d_gates_x, d_gates_h, d_last = self.cell.backward(d, gates_x, gates_h, state[-1], np)
            rows = len(w_hh)  # of the gates that met h
            if met is not None:
                rows -= len(met)
                d_w_hh[rows:] += np.outer(d_gates_h[rows:], met)
                d_met = d_gates_h[rows:] @ w_hh[rows:]
                d_gate, d_h = self.cell.gated_backward(d_met, gates_x, gates_h, state[0], np)
                d_gates_x, d_gates_h, d_last = d_gates_x + d_gate, d_gates_h + d_gate, d_last + d_h
            d_x[t] = d_gates_x @ w_ih
            d_w_ih += np.outer(d_gates_x, self.x[t])
            d_w_hh[:rows] += np.outer(d_gates_h[:rows], state[0])
            d_b_ih += d_gates_x
            d_b_hh += d_gates_h
            # What the cell itself reads of the state before is its last part: h, or c.
            d_state = [np.zeros_like(a) for a in state]
            if not fresh:
                d_state[-1] += d_last
                d_state[0] += d_gates_h[:rows] @ w_hh[:rows]
        return d_x, d_state, (d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_w_hr)
