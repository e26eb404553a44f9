"""Saved by either, loaded by either: models, weights, configurations, pickles."""

import copy
import pickle

import numpy as np
import pytest
from keras_backends import every_kind, keras, normal, values

import elman.keras

X = normal(2, 5, 3)


def model(layers):
    keras.utils.set_random_seed(4)
    made = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.GRU(4, return_sequences=True),
            keras.layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
            layers.SimpleRNN(2),
        ]
    )
    made.compile("sgd", "mse")
    return made


def classes(model):
    return {type(x) for x in model._flatten_layers() if isinstance(x, keras.layers.RNN)}


OURS = {elman.keras.GRU, elman.keras.LSTM, elman.keras.SimpleRNN}
STOCK = {keras.layers.GRU, keras.layers.LSTM, keras.layers.SimpleRNN}


@pytest.fixture
def without_elman(monkeypatch):
    """Keras as it is where nobody imported Elman."""
    for ours in OURS:
        name = keras.saving.get_registered_name(ours)
        monkeypatch.delitem(keras.saving.get_custom_objects(), name)


def test_ours_is_ours_again(tmp_path):
    ours = model(elman.keras)
    assert classes(ours) == OURS
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert classes(again) == OURS
    np.testing.assert_array_equal(again.predict_on_batch(X), ours.predict_on_batch(X))


def test_ours_is_stock_without_elman(tmp_path, without_elman):
    ours = model(keras.layers)
    elman.keras.accelerate(ours)
    assert classes(ours) == OURS
    ours.save(tmp_path / "model.keras")
    stock = keras.saving.load_model(tmp_path / "model.keras")
    assert classes(stock) == STOCK
    want = ours.predict_on_batch(X)
    np.testing.assert_allclose(stock.predict_on_batch(X), want, rtol=0, atol=1e-6)
    elman.keras.accelerate(stock)
    np.testing.assert_array_equal(stock.predict_on_batch(X), want)


def test_stock_stays_stock(tmp_path):
    """That Elman was imported changes no model of others'."""
    stock = model(keras.layers)
    stock.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert classes(again) == STOCK
    assert len(elman.keras.accelerate(again)) == 4
    got, want = again.predict_on_batch(X), stock.predict_on_batch(X)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_weights_go_both_ways(tmp_path):
    for saved, loaded in ((keras.layers, elman.keras), (elman.keras, keras.layers)):
        source, target = model(saved), model(loaded)
        source.set_weights([normal(*w.shape, seed=i) for i, w in enumerate(source.weights)])
        source.save_weights(tmp_path / "model.weights.h5")
        target.load_weights(tmp_path / "model.weights.h5")
        for a, b in zip(target.get_weights(), source.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_cloned():
    assert classes(keras.models.clone_model(model(elman.keras))) == OURS


@every_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copied_and_pickled(kind, duplicate):
    layer = getattr(elman.keras, kind)(4)
    layer.build(X.shape)
    again = duplicate(layer)
    assert type(again) is type(layer)
    np.testing.assert_array_equal(*(values(each(X))[0] for each in (again, layer)))
