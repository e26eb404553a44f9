"""Record what the NumPy package gives, for the R package to give too: digests, and a file.

From the repository root: .venv/bin/python r/tools/digests.py

Of tests/testthat/digests.csv numbers are made by a formula that is exact in both languages; a
digest is the MD5 of results as float64, in order of rows.
"""

import csv
import hashlib
from itertools import product
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import elman

TESTS = Path(__file__).parents[1] / "tests" / "testthat"
KINDS = {
    "rnn_tanh": elman.RNN,
    "rnn_relu": lambda *sizes, **options: elman.RNN(*sizes, nonlinearity="relu", **options),
    "gru": elman.GRU,
    "gru_before": lambda *sizes, **options: elman.GRU(*sizes, reset_after=False, **options),
    "lstm": elman.LSTM,
    "lstm_projected": lambda D, H, **options: elman.LSTM(D, H, proj_size=H - 1, **options),
}
CELLS = {
    "rnn_tanh": elman.RNNCell,
    "rnn_relu": lambda *sizes, **options: elman.RNNCell(*sizes, nonlinearity="relu", **options),
    "gru": elman.GRUCell,
    "gru_before": lambda *sizes, **options: elman.GRUCell(*sizes, reset_after=False, **options),
    "lstm": elman.LSTMCell,
}
SIZES = ["L", "N", "D", "H", "layers"]
NAMES = [*SIZES, "bidirectional", "bias", "batch_first", "states", "lengths", "reset"]
CASES = [
    (1, 1, 10, 20, 1, 0, 1, 0, 0, 0, 0),
    (7, 5, 3, 4, 1, 0, 1, 0, 1, 0, 0),
    (7, 5, 3, 4, 2, 1, 0, 0, 1, 1, 0),
    (9, 6, 5, 17, 3, 1, 1, 1, 1, 1, 1),
    (40, 33, 19, 40, 1, 1, 1, 0, 0, 0, 1),
    (100, 32, 64, 128, 1, 0, 1, 1, 1, 1, 0),
]


def numbers(which, shape):
    """The array of this number in a case; from 10 on they are weights."""
    place = np.arange(np.prod(shape, dtype=int), dtype=float)
    values = (place * 7919 + which * 104729) % 2003 / 2003 - 0.5
    return (values / 4 if which >= 10 else values).reshape(shape)


def digest(arrays):
    """Of all of them, one behind the other."""
    arrays = list(arrays)
    assert all(np.isfinite(a).all() for a in arrays)
    data = b"".join(np.ascontiguousarray(a, "<f8").tobytes() for a in arrays)
    return hashlib.md5(data).hexdigest()


def pair(states):
    """A state, or two."""
    return states[0] if len(states) == 1 else tuple(states)


def listed(states):
    """The inverse."""
    return list(states) if isinstance(states, tuple) else [states]


def of_layer(
    kind, dtype, L, N, D, H, layers, bidirectional, bias, batch_first, states, lengths, reset
):
    """Digests of output, of the final states, and of all gradients."""
    flags = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    flags = {name: bool(value) for name, value in flags.items()}
    layer = KINDS[kind](D, H, num_layers=layers, dtype=dtype, **flags)
    weights = layer.state_dict()
    layer.load_state_dict(
        {k: numbers(10 + i, w.shape).astype(dtype) for i, (k, w) in enumerate(weights.items())}
    )
    axes = (N, L) if batch_first else (L, N)
    K = layers * (1 + bidirectional)

    def state(which):
        sizes = layer.spec.state_sizes.values()
        return pair([numbers(which + s, (K, N, f)).astype(dtype) for s, f in enumerate(sizes)])

    steps = [(n * 5 + 2) % (L + 1) for n in range(N)] if lengths else None
    begins = (np.arange(L * N) % 5 == 3).reshape(axes) if reset else None
    x, first = numbers(0, (*axes, D)).astype(dtype), state(1) if states else None
    output, last, vjp = layer.vjp(x, first, steps, begins)
    gradients = vjp(numbers(3, output.shape).astype(dtype), state(4))
    return [digest([output]), digest(listed(last)), digest(gradients.values())]


def of_cell(kind, dtype, N, D, H):
    """Digests of the state after a step, and of its gradients, those of a layer's step."""
    cell, layer = CELLS[kind](D, H, dtype=dtype), KINDS[kind](D, H, dtype=dtype)
    shapes = {name: w.shape for name, w in cell.state_dict().items()}
    weights = {k: numbers(10 + i, s).astype(dtype) for i, (k, s) in enumerate(shapes.items())}
    cell.load_state_dict(weights)
    layer.load_state_dict({f"{k}_l0": w for k, w in weights.items()})
    count = len(layer.spec.cell.states)
    x = numbers(0, (N, D)).astype(dtype)
    first = [numbers(1 + s, (N, H)).astype(dtype) for s in range(count)]
    *_, vjp = layer.vjp(x[None], pair([h[None] for h in first]))
    gradients = vjp(None, pair([numbers(4 + s, (1, N, H)).astype(dtype) for s in range(count)]))
    return ["", digest(listed(cell(x, pair(first)))), digest(gradients.values())]


def main():
    """Write the files."""
    layer = elman.LSTM(3, 4, num_layers=2, bidirectional=True, seed=0)
    layer.save(TESTS / "python.safetensors")
    x = numbers(0, (5, 2, 3)).astype("float32")
    save_file({"input": x, "output": layer(x)[0]}, TESTS / "python-output.safetensors")
    with (TESTS / "digests.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["kind", "cell", "dtype", *NAMES, "output", "hx", "gradients"])
        for kind, dtype in product(KINDS, ("float32", "float64")):
            for case in CASES:
                rows.writerow([kind, 0, dtype, *case, *of_layer(kind, dtype, *case)])
            for N, D, H in ((1, 10, 20), (6, 5, 17)) if kind in CELLS else ():
                case = (1, N, D, H, 1, 0, 1, 0, 1, 0, 0)
                rows.writerow([kind, 1, dtype, *case, *of_cell(kind, dtype, N, D, H)])


if __name__ == "__main__":
    main()
