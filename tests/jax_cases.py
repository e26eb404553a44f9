"""A direction of a layer, drawn once: by the JAX package, by the NumPy package, and by a scan."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from doors import CELLS, build
from reference import parts, whole

import elman
import elman.jax
from elman import engine
from elman.jax import operators
from elman.spec import CELLS as SPECS

L, N, D, H = 6, 5, 3, 9
EXTENTS = ("whole", "lengths", "reset", "both")
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def draw(cell, extent="whole", dtype="float32", shape=(L, N, D, H), bias=True, seed=0):
    """Weights, x and states, cotangents of output and states, and what goes by name."""
    rng = np.random.default_rng(seed)
    steps, rows, D, H = shape
    spec = SPECS[cell]
    G = len(spec.gates) * H
    shapes = dict(zip(NAMES, ((G, D), (G, H), (G,), (G,)), strict=True))
    dtype = np.dtype(dtype)
    weights = {
        name: rng.uniform(-0.5, 0.5, s).astype(dtype)
        for name, s in shapes.items()
        if bias or len(s) == 2
    }

    def states():
        wide = engine.computed_in(dtype)
        return whole([rng.normal(size=(rows, H)).astype(wide) for _ in spec.states])

    x, d_output = (rng.normal(size=(steps, rows, k)).astype(dtype) for k in (D, H))
    extents = {}
    if extent in ("lengths", "both"):
        lengths = rng.integers(0, steps + 1, rows).astype("int32")
        lengths[0], lengths[-1] = 0, steps
        extents["lengths"] = lengths
    if extent in ("reset", "both"):
        extents["reset"] = rng.random((steps, rows)) < 0.3
    return (weights, x, states()), (d_output, states()), extents


def function(cell, **options):
    """The JAX package's."""
    kind = SPECS[cell].kind
    if kind == "RNN":
        options["nonlinearity"] = cell.removeprefix("rnn_")
    if cell == "gru_reset_before":
        options["reset_after"] = False
    return partial(getattr(elman.jax, kind.lower()), **options)


def run_jax(cell, inputs, cotangents, extents, **options):
    """Output, final states, and the gradients of weights, x and first states."""
    run = function(cell, **extents, **options)
    results, vjp = jax.vjp(jax.jit(lambda *inputs: run(*inputs)), *inputs)
    return results, vjp(jax.tree.map(jnp.asarray, cotangents))


def run_numpy(cell, inputs, cotangents, extents, reverse=False):
    """The same by the NumPy package, where what runs in reverse is half of a layer."""
    weights, x, states = inputs
    d_output, d_states = cotangents
    layer = build(
        elman,
        cell,
        x.shape[-1],
        weights["weight_hh"].shape[1],
        bias="bias_ih" in weights,
        bidirectional=reverse,
        dtype=x.dtype,
    )
    half = {f"{name}_l0": w for name, w in weights.items()}
    if reverse:
        half |= {f"{name}_l0_reverse": w for name, w in weights.items()}
    layer.load_state_dict(half)

    def both(a, axis):
        return np.concatenate([np.zeros_like(a), a], axis) if reverse else a

    first, d_final = (whole([both(a[None], 0) for a in parts(s)]) for s in (states, d_states))
    output, final, vjp = layer.vjp(x, first, **extents)
    found = vjp(both(d_output, -1), d_final)
    suffix = "_l0_reverse" if reverse else "_l0"
    d_weights = {name: found[name + suffix] for name in weights}
    names = [f"{name}_0" for name in SPECS[cell].states]
    last = whole([a[-1] for a in parts(final)])
    d_first = whole([found[name][-1] for name in names])
    results = output[..., -d_output.shape[-1] :], last
    return results, (d_weights, found["x"], d_first)


def run_by_scan(cell, weights, x, states, extents, reverse=False):
    """Output and final states by a ``lax.scan``, which JAX differentiates by itself."""
    h_0, *c_0 = parts(states)
    operands = [x, h_0, *(c_0 or [operators.absent(x)]), *(weights[name] for name in NAMES)]
    operands += [extents.get(name, operators.absent()) for name in ("lengths", "reset")]
    output, h_n, c_n = operators.run_scan(*operands, call=operators.Call(cell, reverse))
    return output, (h_n, c_n) if c_0 else h_n


__all__ = ["CELLS", "EXTENTS", "draw", "function", "run_by_scan", "run_jax", "run_numpy"]
