"""Keras models with Elman's layers: training, wrappers, and ``accelerate``."""

import numpy as np
import pytest
from keras_backends import BACKEND, differentiable, keras, normal

import elman.keras
from elman.keras import paths, require

TOKENS = np.random.default_rng(3).integers(0, 9, (12, 7))
TARGETS = normal(12, 1)


def functional(layers):
    """Every layer of the package: masked, in both directions, with dropout, states handed on."""
    tokens = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(tokens)
    x = keras.layers.Bidirectional(layers.LSTM(3, return_sequences=True), merge_mode="sum")(x)
    x, h = layers.GRU(4, return_sequences=True, return_state=True, dropout=0.2, seed=1)(x)
    x = layers.SimpleRNN(4, activation="relu", go_backwards=True)(x, initial_state=h)
    return keras.Model(tokens, keras.layers.Dense(1)(x))


class Subclassed(keras.Model):
    """Layers as attributes, in a list, in wrappers, and cells that are Keras's own."""

    def __init__(self, layers):
        super().__init__()
        self.embedding = keras.layers.Embedding(9, 4)
        self.several = [layers.GRU(4, return_sequences=True, reset_after=False)]
        self.each = keras.layers.TimeDistributed(layers.LSTM(3))
        cells = [keras.layers.GRUCell(3), keras.layers.LSTMCell(3)]
        self.stacked = keras.layers.RNN(cells)
        self.head = keras.layers.Dense(1)

    def call(self, tokens):
        x = self.embedding(tokens)
        for layer in self.several:
            x = layer(x)
        x = self.each(x[:, :, :, None])
        return self.head(self.stacked(x))


def built(make, layers):
    keras.utils.set_random_seed(5)
    model = make(layers)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@differentiable
@pytest.mark.parametrize("make", [functional, Subclassed])
def test_fit_has_the_same_losses(make):
    found = []
    for layers in (keras.layers, elman.keras):
        model = built(make, layers)
        with require("kernel"):  # which holds for Elman's alone
            found.append(model.fit(TOKENS, TARGETS, 4, 2, 0, shuffle=False).history["loss"])
    assert found[0][1] != found[0][0]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.parametrize("make", [functional, Subclassed])
def test_predict(make):
    stock, ours = (built(make, layers) for layers in (keras.layers, elman.keras))
    want = stock.predict(TOKENS, verbose=0)
    ours(TOKENS[:1])
    ours.set_weights(stock.get_weights())
    with require("kernel"):
        got = ours.predict(TOKENS, verbose=0)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_accelerate():
    """In place: a model that has run goes on with the same weights, by functions made anew."""
    model = built(functional, keras.layers)
    want = model.predict_on_batch(TOKENS)
    variables = model.variables
    names = elman.keras.accelerate(model)
    kinds = sorted(name.rstrip("_0123456789") for name in names)
    assert kinds == ["backward_lstm", "forward_lstm", "gru", "simple_rnn"]
    assert elman.keras.accelerate(model) == []
    assert all(a is b for a, b in zip(model.variables, variables, strict=True))
    paths.clear()
    with require("kernel"):
        np.testing.assert_allclose(model.predict_on_batch(TOKENS), want, rtol=0, atol=1e-6)
    assert paths["kernel"] == 4
    assert elman.keras.accelerate(model, undo=True) == names
    assert not any(isinstance(x, _ours()) for x in model._flatten_layers())
    paths.clear()
    model.predict_on_batch(TOKENS)
    assert not paths


def _ours():
    return (elman.keras.GRU, elman.keras.LSTM, elman.keras.SimpleRNN)


def test_accelerate_reaches_everywhere_and_leaves_others_alone():
    class Mine(keras.layers.GRU):
        pass

    model = keras.Sequential([built(Subclassed, keras.layers), Mine(2), elman.keras.GRU(2)])
    model.layers[0](TOKENS[:1])
    names = elman.keras.accelerate(model)
    assert {name.partition("_")[0] for name in names} == {"gru", "lstm"}
    assert list(names.left.values()) == ["Mine is a class of its own"]
    assert type(model.layers[1]) is Mine
    assert len(elman.keras.accelerate(model, undo=True)) == 2
    assert type(model.layers[2]) is elman.keras.GRU
    layer = keras.layers.LSTM(2, name="alone")
    assert elman.keras.accelerate(layer) == ["alone"]


def test_accelerate_names_each_of_several_layers_of_one_name():
    def part():
        return keras.Sequential(
            [keras.Input((7, 2)), keras.layers.GRU(2, return_sequences=True, name="memory")]
        )

    model = keras.Sequential([part(), keras.layers.Dense(2)])
    whole = keras.Sequential([model, part()])
    assert elman.keras.accelerate(whole) == ["memory", "memory"]
    assert elman.keras.accelerate(whole, undo=True) == ["memory", "memory"]


@pytest.mark.parametrize("given", [None, [keras.layers.GRU]])
def test_accelerate_is_for_keras_layers(given):
    with pytest.raises(TypeError, match="accelerate: expected a Keras model or layer, got <class"):
        elman.keras.accelerate(given)


@differentiable
def test_training_goes_on_accelerated():
    found = []
    for accelerated in (False, True):
        model = built(functional, keras.layers)
        first = model.train_on_batch(TOKENS, TARGETS)
        if accelerated:
            assert elman.keras.accelerate(model)
        with require("kernel"):
            found.append([first, model.train_on_batch(TOKENS, TARGETS)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@differentiable
def test_a_stateful_model_trains():
    """On PyTorch's backend Keras's own does so only by its generic loop, use_cudnn=False."""
    found = []
    for layers, options in ((keras.layers, {"use_cudnn": False}), (elman.keras, {})):
        keras.utils.set_random_seed(5)
        model = keras.Sequential(
            [keras.Input(batch_shape=(12, 7, 2)), layers.GRU(3, stateful=True, **options)]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
        x, y = normal(12, 7, 2), normal(12, 3, seed=1)
        found.append([model.train_on_batch(x, y) for _ in range(3)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="elsewhere there is no torch.compile")
@pytest.mark.filterwarnings("ignore")  # torch's, of Keras's own code
def test_compiled_by_torch():
    found = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.Input((7, 2)), elman.keras.GRU(3)])
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        with require("kernel"):
            x, y = normal(12, 7, 2), normal(12, 3, seed=1)
            found.append([model.train_on_batch(x, y) for _ in range(2)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="elsewhere Keras exports by other packages")
@pytest.mark.filterwarnings("ignore")  # torch's, of its older exporter
def test_exported_as_onnx(tmp_path):
    """As Keras's own: an ONNX model knows no operator of Elman's."""
    pytest.importorskip("onnxscript", reason="ONNX Script is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    model = keras.Sequential([keras.Input((5, 2)), elman.keras.GRU(3, return_sequences=True)])
    x = normal(2, 5, 2)
    want = model.predict_on_batch(x)
    path = str(tmp_path / "model.onnx")
    paths.clear()
    model.export(path, format="onnx", verbose=False)
    assert paths["keras"] >= 1
    session = runtime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
