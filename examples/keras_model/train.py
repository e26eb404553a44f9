"""A Keras model of the Japanese Vowels, trained with Keras's layers and on with Elman's."""

import time
from collections.abc import Callable

import keras
import numpy as np

import elman.keras
from examples.japanese_vowels.data import CHANNELS, SPEAKERS, Utterances

UNITS = 48
BATCH = 30
EPOCHS_OF_KERAS = 2


def build(longest: int) -> keras.Model:
    """Frames (N, L, 12), zeros past each utterance's end, to nine probabilities."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((longest, CHANNELS)),
            keras.layers.Masking(),
            keras.layers.Bidirectional(
                keras.layers.GRU(UNITS, return_sequences=True, name="frames")
            ),
            keras.layers.LSTM(UNITS, name="utterance"),
            keras.layers.Dense(SPEAKERS, activation="softmax", name="speaker"),
        ]
    )
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    return model


def train(
    model: keras.Model, data: Utterances, epochs: int, after_epoch: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each epoch. Whichever layers it has had, the model ends with Keras's."""
    seconds: dict[str, list[float]] = {"Keras": [], "Elman": []}
    for epoch in range(epochs):
        if epoch == EPOCHS_OF_KERAS:
            elman.keras.accelerate(model)  # with the same weights, and the same optimiser
        began = time.perf_counter()
        model.fit(data.frames, data.speakers, batch_size=BATCH, verbose=0)
        seconds["Keras" if epoch < EPOCHS_OF_KERAS else "Elman"].append(time.perf_counter() - began)
        after_epoch()
    elman.keras.accelerate(model, undo=True)
    return seconds


def accuracy(probabilities: np.ndarray, data: Utterances) -> float:
    """The share that is recognised."""
    return float(np.mean(probabilities.argmax(axis=1) == data.speakers))
