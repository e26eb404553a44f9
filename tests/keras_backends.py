"""A Keras layer's values and gradients on the backend that this process has.

Keras takes one backend a process, by KERAS_BACKEND. The tests of the Keras package run on that of
the process, PyTorch's unless told; `test_keras_backends.py` runs them on the others.
"""

import os

import numpy as np
import pytest
from reference import assert_close

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed")
import elman.keras  # noqa: E402

BACKEND = keras.config.backend()
KINDS = {"SimpleRNN": 1, "GRU": 1, "LSTM": 2}  # and how many states each has
N, L, D, H = 5, 6, 3, 4

if BACKEND == "torch":
    import torch
elif BACKEND == "jax":
    import jax

every_kind = pytest.mark.parametrize("kind", KINDS)
differentiable = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy's backend has no gradients")


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(kind):
    """X (N, L, D) and as many states (N, H) as the kind has."""
    return normal(N, L, D), [normal(N, H, seed=1 + i) for i in range(KINDS[kind])]


def twins(kind, **options):
    """Keras's layer and Elman's, with the same random weights, biases too."""
    made = []
    for module in (keras.layers, elman.keras):
        layer = getattr(module, kind)(H, seed=7, **options)
        layer.build((N, L, D))
        layer.set_weights([normal(*w.shape, seed=10 + i) for i, w in enumerate(layer.weights)])
        made.append(layer)
    return made


def values(results):
    """Results as a list of arrays."""
    return [keras.ops.convert_to_numpy(a) for a in keras.tree.flatten(results)]


def differentiate(layer, x, states, **call):
    """The results, and the gradients of x, the states and the weights, of random cotangents."""
    if BACKEND == "numpy":
        return values(layer(x, initial_state=states, **call)), []
    return (_by_torch if BACKEND == "torch" else _by_jax)(layer, x, states, call)


def _weighted(results):
    """The results' sum with random weights."""
    flat = keras.tree.flatten(results)
    d = [normal(*a.shape, seed=20 + i) for i, a in enumerate(flat)]
    return sum((a * keras.ops.convert_to_tensor(b)).sum() for a, b in zip(flat, d, strict=True))


def _by_torch(layer, x, states, call):
    x, *states = (torch.tensor(a, requires_grad=True) for a in (x, *states))
    results = layer(x, initial_state=states, **call)
    inputs = [x, *states, *(v.value for v in layer.trainable_variables)]
    gradients = torch.autograd.grad(_weighted(results), inputs)
    return values([a.detach() for a in keras.tree.flatten(results)]), values(gradients)


def _by_jax(layer, x, states, call):
    variables = layer.trainable_variables

    def loss(x, states, weights, extra):
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            results = layer(x, initial_state=states, **fixed, **extra)
        return _weighted(results), results

    extra = {name: a for name, a in call.items() if not isinstance(a, bool)}
    fixed = {name: a for name, a in call.items() if isinstance(a, bool)}
    arrays = (x, states, [v.value for v in variables], extra)
    gradients, results = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return values(results), values(gradients)


def assert_alike(stock, ours, x, states, path="kernel", **call):
    """Both give the same, values and gradients, and ours goes that way."""
    with elman.keras.require(path):
        got = differentiate(ours, x, states, **call)
    want = differentiate(stock, x, states, **call)
    for mine, keras_has in zip(got, want, strict=True):
        assert len(mine) == len(keras_has)
        for n, (a, b) in enumerate(zip(mine, keras_has, strict=True)):
            assert_close(a, b, name=str(n))
