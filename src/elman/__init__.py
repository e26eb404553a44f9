"""Recurrent layers that give the same answer everywhere.

This module is the NumPy package: ``elman.RNN``, ``GRU``, ``LSTM`` and their cells take and return
NumPy arrays and import no framework. ``elman.torch``, ``elman.keras``, ``elman.mlx`` and
``elman.oneflow`` stand in for those frameworks' own layers, ``elman.jax`` for Flax's;
``elman.weights`` carries weights from one to another, and ``elman.export`` writes C.

>>> import elman, numpy as np
>>> gru = elman.GRU(10, 20, num_layers=2, seed=0)
>>> x = np.ones((5, 3, 10), dtype="float32")  # (L, N, D)
>>> output, h_n = gru(x)
>>> output.shape, h_n.shape
((5, 3, 20), (2, 3, 20))
"""

from elman.engine import get_num_threads, set_num_threads
from elman.layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, load
from elman.streams import Stream

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "get_num_threads",
    "load",
    "set_num_threads",
]
