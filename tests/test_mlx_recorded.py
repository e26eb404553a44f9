"""Every recorded case of MLX's layers, through the MLX package."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference import assert_close, parts

mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
nn = pytest.importorskip("mlx.nn")

import elman.mlx  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures" / "mlx"
NONLINEARITIES = {"tanh": nn.tanh, "relu": nn.relu, "sigmoid": nn.sigmoid}


def load(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("meta"))), arrays


def build(meta, arrays):
    """The layer with the recorded weights, which must have exactly its names and shapes."""
    arguments = dict(meta["args"])
    if "nonlinearity" in arguments:
        arguments["nonlinearity"] = NONLINEARITIES[arguments["nonlinearity"]]
    layer = getattr(elman.mlx, meta["class"].removeprefix("mlx.nn."))(**arguments)
    dtype = getattr(mx, meta["dtype"])
    weights = [(k[7:], mx.array(a, dtype)) for k, a in arrays.items() if k.startswith("weight.")]
    return layer.load_weights(weights)


@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("*.npz")))
def test_case(name):
    meta, arrays = load(name)
    layer = build(meta, arrays)
    dtype = getattr(mx, meta["dtype"])
    x = mx.array(arrays["input"], dtype)
    states = [mx.array(arrays[k], dtype) for k in ("h_0", "c_0") if k in arrays]
    tolerance = meta.get("precision", meta["dtype"])
    with elman.mlx.require("mlx" if "sigmoid" in name else "kernel"):
        *every, final = layer(x, *states, return_state=True)
        again = parts(layer(x, *states))
    results = dict(zip(("output", "cells"), every, strict=False)) | {"h_n": parts(final)[0]}
    for key, a in results.items():
        assert a.dtype == dtype
        assert_close(a, arrays[key], tolerance, key)
    if "cells" in results:
        assert np.array_equal(final[1], results["cells"][..., -1, :])
    for a, same in zip(every, again, strict=True):
        assert np.array_equal(a, same)

    # An LSTM's Gc is of c at every step.
    cotangents = [mx.array(arrays[k], dtype) for k in ("G", "Gc", "Gh") if k in arrays]

    def loss(parameters, x, *states):
        layer.update(parameters)
        *every, final = layer(x, *states, return_state=True)
        pairs = zip((*every, parts(final)[0]), cotangents, strict=True)
        return sum((a * d).sum() for a, d in pairs)

    wanted = tuple(range(2 + len(states)))
    gradients = mx.grad(loss, argnums=wanted)(layer.parameters(), x, *states)
    named = {f"grad.weight.{k}": d for k, d in gradients[0].items()}
    named |= dict(zip(["grad.input", "grad.h_0", "grad.c_0"], gradients[1:], strict=False))
    assert named.keys() == {k for k in arrays if k.startswith("grad.")}
    for key, gradient in named.items():
        assert_close(gradient, arrays[key], tolerance, key)


def test_every_case_is_here():
    """So that a checkout without the files cannot pass."""
    assert len(list(FIXTURES.glob("*.npz"))) == 52
