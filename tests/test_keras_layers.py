"""The Keras package against Keras's own layers: options, values, every gradient."""

import numpy as np
import pytest
from keras_backends import (
    BACKEND,
    D,
    H,
    L,
    N,
    assert_alike,
    differentiable,
    differentiate,
    every_kind,
    inputs,
    keras,
    normal,
    twins,
    values,
)
from reference import assert_close

import elman
import elman.keras
from elman.keras import layers, paths, require

OPTIONS = [
    {},
    {"return_sequences": True},
    {"return_sequences": True, "return_state": True},
    {"return_state": True, "go_backwards": True},
    {"return_sequences": True, "go_backwards": True},
    {"return_sequences": True, "unroll": True},
    {"use_bias": False, "return_sequences": True},
]


@every_kind
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(kind, options):
    assert_alike(*twins(kind, **options), *inputs(kind))


def test_relu():
    assert_alike(*twins("SimpleRNN", activation="relu"), *inputs("SimpleRNN"))


@pytest.mark.parametrize("use_bias", [True, False])
def test_reset_before(use_bias):
    options = {"reset_after": False, "use_bias": use_bias, "return_sequences": True}
    assert_alike(*twins("GRU", **options), *inputs("GRU"))


def test_activations_as_functions():
    options = {"activation": keras.ops.tanh, "recurrent_activation": keras.ops.sigmoid}
    assert_alike(*twins("GRU", **options), *inputs("GRU"))


def rounded(a, dtype):
    return values(keras.ops.cast(keras.ops.cast(a, dtype), "float32"))[0]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16", "mixed_float16", "float16"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_half_precision_is_no_further_off_than_keras_own(kind, dtype):
    """Both by float32 on the rounded weights and input: output, and the largest gradient error."""
    half = dtype.removeprefix("mixed_")
    options = {"return_sequences": True, "recurrent_initializer": "glorot_uniform"}
    exact, stock, ours = twins(kind, **options)[0], *twins(kind, dtype=dtype, **options)
    for layer in (exact, stock, ours):
        layer.set_weights([rounded(w, half) for w in exact.get_weights()])
    x, states = inputs(kind)
    x, states = rounded(x, half), [rounded(s, half) for s in states]
    want = differentiate(exact, x, states)
    errors = []
    for layer in (stock, ours):
        with require("kernel"):  # which holds for Elman's alone
            (output,), gradients = differentiate(layer, x, states)
        assert keras.backend.standardize_dtype(output.dtype) == half
        pairs = zip(gradients, want[1], strict=True)
        off = [np.abs(a.astype("float32") - b).max() / np.abs(b).max() for a, b in pairs]
        errors.append((np.abs(output.astype("float32") - want[0][0]).max(), max(off, default=0)))
    assert 0 < errors[1][0] <= errors[0][0]
    assert errors[1][1] <= errors[0][1]


@every_kind
@pytest.mark.parametrize("options", [{"dropout": 0.4}, {"dropout": 0.4, "go_backwards": True}])
def test_dropout(kind, options):
    """From one seed the same values are dropped."""
    stock, ours = twins(kind, **options)
    for _ in range(2):
        assert_alike(stock, ours, *inputs(kind), training=True)
    assert_alike(stock, ours, *inputs(kind), training=False)


# What the engine has not.


@every_kind
def test_recurrent_dropout(kind):
    stock, ours = twins(kind, recurrent_dropout=0.4)
    assert_alike(stock, ours, *inputs(kind), path="keras", training=True)
    assert_alike(stock, ours, *inputs(kind), path="kernel", training=False)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SimpleRNN", {"activation": None}),
        ("GRU", {"activation": "relu"}),
        ("GRU", {"recurrent_activation": "hard_sigmoid"}),
        ("LSTM", {"activation": "softsign"}),
    ],
)
def test_other_activations(kind, options):
    assert_alike(*twins(kind, **options), *inputs(kind), path="keras")


def test_use_cudnn_is_keras_to_answer():
    for use_cudnn, path in ((False, "kernel"), ("auto", "kernel")):
        assert_alike(*twins("GRU", use_cudnn=use_cudnn), *inputs("GRU"), path=path)
    ours = twins("GRU", use_cudnn=True)[1]
    paths.clear()
    try:
        ours(normal(N, L, D))
    except ValueError as e:
        assert "use_cudnn=True" in str(e)  # noqa: PT017 (on PyTorch's backend Keras takes it)
    assert dict(paths) == {"keras": 1}


def test_backends_without_an_engine(monkeypatch):
    """As TensorFlow's, of which Elman has no module."""
    monkeypatch.setattr(layers, "_backend", None)
    assert_alike(*twins("LSTM"), *inputs("LSTM"), path="keras")


def test_paths():
    ours = twins("GRU")[1]
    paths.clear()
    ours(normal(N, L, D))
    elman.keras.GRU(H, activation="relu")(normal(N, L, D))
    assert dict(paths) == {"kernel": 1, "keras": 1}
    with require("kernel"), pytest.raises(RuntimeError, match="GRU: path 'kernel' is required"):
        elman.keras.GRU(H, activation="relu")(normal(N, L, D))


# What is Keras's own


@every_kind
def test_constructors(kind):
    options = {
        "kernel_initializer": "he_normal",
        "recurrent_initializer": "glorot_uniform",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "recurrent_regularizer": "l1",
        "bias_regularizer": "l2",
        "activity_regularizer": "l2",
        "kernel_constraint": "max_norm",
        "recurrent_constraint": "unit_norm",
        "bias_constraint": "non_neg",
        "dropout": 0.1,
        "recurrent_dropout": 0.0,
        "trainable": True,
        "name": "layer",
    }
    if kind != "SimpleRNN":
        options |= {"recurrent_activation": "sigmoid", "implementation": 2}
    if kind == "LSTM":
        options |= {"unit_forget_bias": False}
    made = []
    for module in (keras.layers, elman.keras):
        keras.utils.set_random_seed(3)
        made.append(getattr(module, kind)(H, **options))
        made[-1](normal(N, L, D))
    stock, ours = made
    assert isinstance(ours, type(stock))
    assert ours.get_config() == stock.get_config()
    assert [v.path for v in ours.weights] == [v.path for v in stock.weights]
    for a, b in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(ours.losses) == len(stock.losses) >= 3
    np.testing.assert_allclose(values(ours.losses), values(stock.losses), rtol=1e-5)
    again = type(ours).from_config(ours.get_config())
    assert again.get_config() == ours.get_config()
    assert repr(ours) == repr(stock)


@every_kind
@pytest.mark.parametrize("given", ["one too many", "another size"])
def test_bad_states_are_keras_errors(kind, given):
    stock, ours = twins(kind)
    x, states = inputs(kind)
    states = [*states, states[0]] if given == "one too many" else [s[:, :-1] for s in states]
    answers = []
    for layer in (stock, ours):
        try:
            answers.append(values(layer(x, initial_state=states))[0].shape)
        except Exception as e:  # of the backend
            answers.append(type(e))
    assert answers[0] == answers[1]


@every_kind
def test_bad_input_is_keras_error(kind):
    stock, ours = twins(kind)
    raised = []
    for layer in (stock, ours):
        with pytest.raises(Exception) as error:  # noqa: PT011 (each backend has its own)
            layer(normal(N, L, D + 1))
        raised.append(type(error.value))
    assert raised[0] is raised[1]


@every_kind
def test_stateful(kind):
    """Three calls are one, until the state is reset."""
    ours = twins(kind, stateful=True, return_sequences=True)[1]
    whole = twins(kind, return_sequences=True)[0]
    x = normal(N, 3 * L, D)
    want = values(whole(x))[0]
    for _ in range(2):
        got = [values(ours(x[:, i : i + L]))[0] for i in (0, L, 2 * L)]
        assert_close(np.concatenate(got, 1), want)
        ours.reset_state()


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numpy_packages_bits(kind, dtype):
    """Its weights, converted, give what ours give, bit for bit."""
    if dtype == "float64" and BACKEND != "torch":
        pytest.skip("Keras makes float32 of float64 there")
    ours = twins(kind, return_sequences=True, dtype=dtype)[1]
    x, states = (keras.tree.map_structure(lambda a: a.astype(dtype), each) for each in inputs(kind))
    options = {"nonlinearity": "tanh"} if kind == "SimpleRNN" else {}
    named = {v.path.partition("/")[2]: values(v)[0].copy() for v in ours.weights}
    layer = elman.weights.build(named, "keras", batch_first=True, **options)
    want, _ = layer(x, states[0][None] if len(states) == 1 else tuple(s[None] for s in states))
    got = values(ours(x, initial_state=states))[0]
    assert got.dtype == want.dtype == dtype
    np.testing.assert_array_equal(got, want)


@differentiable
@every_kind
def test_float64_gradients(kind):
    """As Keras's generic loop rounds to float32 on the way, by finite differences."""
    if BACKEND != "torch":
        pytest.skip("Keras makes float32 of float64 there")
    import torch

    ours = twins(kind, dtype="float64", return_sequences=True, return_state=True)[1]
    x, states = inputs(kind)
    arrays = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, *states)]
    weights = [v.value for v in ours.weights]

    def run(x, *rest):
        return ours(x, initial_state=list(rest[: len(states)]))

    assert torch.autograd.gradcheck(run, (*arrays, *weights))
