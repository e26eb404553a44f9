"""The PyTorch package: ``torch.nn``'s RNN, GRU, LSTM and their cells, and ``accelerate``.

The layers derive from ``torch.nn.RNNBase`` and the cells from torch's cells, and so have torch's
constructors, parameters, state_dict, repr, errors and warnings. They compute the same function, and
the layers take ``lengths=`` and ``reset=`` besides.

A call takes one of three paths; :data:`paths` counts which, and :func:`require` insists on one:

- "kernel": the engine, for float32, float64, bfloat16 and float16 on the CPU;
- "torch": torch's own layer, for every other device and dtype, under autocast, and for whatever
  torch itself refuses, so that the error is torch's own;
- "scan": the loop of ``elman.scan`` on tensors, where torch's layer has nothing to offer:
  ``lengths`` or ``reset`` on other tensors, forward-mode derivatives, and an LSTM under autocast on
  a processor without arithmetic in its type.
"""

from elman.torch.layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from elman.torch.operators import paths as _paths
from elman.torch.stock import accelerate, install, uninstall

paths, require = _paths.counts, _paths.require

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "accelerate",
    "install",
    "paths",
    "require",
    "uninstall",
]
