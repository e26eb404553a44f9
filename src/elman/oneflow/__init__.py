"""The OneFlow package: RNN, GRU, LSTM and their cells for ``oneflow.nn``'s, and ``accelerate``.

The classes derive from OneFlow's, and so have its constructors, parameters, state_dict, repr and
errors. They compute the same function. On top of it the layers take ``lengths=`` and ``reset=``,
and what OneFlow's documentation promises holds where OneFlow 0.9.0 raises: a cell without a hidden
state starts from zeros, and :func:`pack_padded_sequence` takes ``enforce_sorted=False``.

A call takes one of three paths; :data:`paths` counts which, and :func:`require` insists on one:

- "kernel": the engine, for float32 and float64 on the CPU;
- "oneflow": OneFlow's own layer, for every other device and dtype, for global tensors, inside an
  ``nn.Graph``, and for whatever OneFlow itself refuses, so that the error is OneFlow's own;
- "scan": the loop of ``elman.scan`` on tensors, for ``lengths`` or ``reset`` on any of those.

A second derivative raises RuntimeError; OneFlow's own layers have none either.
"""

# pyright: basic, reportMissingImports=false
# (OneFlow is not typed, and is not there where types are checked)

from elman.oneflow.layers import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    RNNCell,
    accelerate,
    pack_padded_sequence,
    paths,
    require,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "accelerate",
    "pack_padded_sequence",
    "paths",
    "require",
]
