"""The Keras package."""

from elman.keras.layers import GRU, LSTM, SimpleRNN, accelerate, paths, require

__all__ = ["GRU", "LSTM", "SimpleRNN", "accelerate", "paths", "require"]
