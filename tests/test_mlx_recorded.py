"""Every recorded case of MLX's layers, through the MLX door."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference import assert_close

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
    hidden = mx.array(arrays["h_0"], dtype) if "h_0" in arrays else None
    tolerance = meta.get("precision", meta["dtype"])
    with elman.mlx.require("mlx" if "sigmoid" in name else "kernel"):
        output, h_n = layer(x, hidden, return_state=True)
        again = layer(x, hidden)
    assert output.dtype == dtype
    assert_close(output, arrays["output"], tolerance, "output")
    assert_close(h_n, arrays["h_n"], tolerance, "h_n")
    assert np.array_equal(output, again)

    G, Gh = mx.array(arrays["G"], dtype), mx.array(arrays["Gh"], dtype)

    def loss(parameters, x, hidden):
        layer.update(parameters)
        output, h_n = layer(x, hidden, return_state=True)
        return (output * G).sum() + (h_n * Gh).sum()

    wanted = (0, 1) if hidden is None else (0, 1, 2)
    gradients = mx.grad(loss, argnums=wanted)(layer.parameters(), x, hidden)
    named = {f"grad.weight.{k}": d for k, d in gradients[0].items()}
    named |= dict(zip(["grad.input", "grad.h_0"], gradients[1:], strict=False))
    assert named.keys() == {k for k in arrays if k.startswith("grad.")}
    for key, gradient in named.items():
        assert_close(gradient, arrays[key], tolerance, key)


def test_every_case_is_here():
    """So that a checkout without the files cannot pass."""
    assert len(list(FIXTURES.glob("*.npz"))) == 39
