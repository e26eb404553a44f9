"""Masks of every kind, by Keras's own layer on the same backend."""

import numpy as np
import pytest
from keras_backends import BACKEND, L, N, assert_alike, differentiate, inputs, keras, twins

import elman.keras
from elman.keras import require

#: A row each: all steps, the first ones, the last ones, with holes, none.
MASK = np.array(
    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0] * 6], bool
)
assert MASK.shape == (N, L)


WAYS = ({}, {"go_backwards": True}, {"unroll": True})


@pytest.mark.parametrize("zero_output_for_mask", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_any_mask(zero_output_for_mask, return_sequences, way):
    options = {"zero_output_for_mask": zero_output_for_mask, "return_sequences": return_sequences}
    layers = twins("GRU", return_state=True, **options, **way)
    assert_alike(*layers, *inputs("GRU"), mask=keras.ops.convert_to_tensor(MASK))


@pytest.mark.parametrize("kind", ["LSTM", "SimpleRNN"])
def test_any_mask_of_other_kinds(kind):
    layers = twins(kind, return_state=True, return_sequences=True)
    assert_alike(*layers, *inputs(kind), mask=keras.ops.convert_to_tensor(MASK))


@pytest.mark.skipif(BACKEND != "torch", reason="elsewhere Keras's own can")
def test_unrolled_backwards_where_keras_own_fails():
    options = {"return_sequences": True, "go_backwards": True}
    x, states = inputs("GRU")
    mask = keras.ops.convert_to_tensor(MASK)
    stock, ours = twins("GRU", unroll=True, **options)
    with pytest.raises(AttributeError):
        stock(x, initial_state=states, mask=mask)
    looped = twins("GRU", **options)[0]
    assert_alike(looped, ours, x, states, mask=mask)


def test_masked_steps_are_not_read():
    ours = twins("LSTM", return_sequences=True)[1]
    x, states = inputs("LSTM")
    mask = keras.ops.convert_to_tensor(MASK)
    want, gradients = differentiate(ours, x, states, mask=mask)
    x[~MASK] = np.nan
    again, gradients_again = differentiate(ours, x, states, mask=mask)
    for a, b in zip(again + gradients_again, want + gradients, strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_of_other_types_and_shapes():
    x, states = inputs("GRU")
    as_integers = keras.ops.convert_to_tensor(MASK.astype("int32"))
    assert_alike(*twins("GRU", use_cudnn=False), x, states, mask=as_integers)


@pytest.mark.parametrize("merge_mode", ["concat", "sum"])
def test_masked_embedding_in_bidirectional(merge_mode):
    """What a user has: padded tokens, their mask, both directions."""
    tokens = np.array([[1, 2, 3, 4, 5, 6], [4, 5, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0], [0] * 6])
    results = []
    for module in (keras.layers, elman.keras):
        keras.utils.set_random_seed(2)
        both = [
            keras.layers.Bidirectional(
                getattr(module, kind)(3, return_sequences=True), merge_mode=merge_mode
            )
            for kind in ("GRU", "LSTM")
        ]
        model = keras.Sequential([keras.layers.Embedding(8, 4, mask_zero=True), *both])
        model.compile()
        with require("kernel"):  # which holds for Elman's alone
            results.append(model.predict_on_batch(tokens))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-6)
