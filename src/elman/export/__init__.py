"""Models as one C header, with the bits of the Python packages.

A model is layers one behind the other: recurrent ones of one direction, and what stands before and
behind them. It is run here by the engine, and written as C by :func:`header`.
"""

from elman.export.formats import load, write
from elman.export.header import header, weights
from elman.export.layers import Conv1d, Linear, ReLU, Sigmoid, Softmax, Tanh
from elman.export.model import Model
from elman.export.modules import from_torch

__all__ = [
    "Conv1d",
    "Linear",
    "Model",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "from_torch",
    "header",
    "load",
    "weights",
    "write",
]
