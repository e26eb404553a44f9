"""The MLX package: RNN, GRU and LSTM for ``mlx.nn``'s, and ``accelerate``.

The layers derive from ``mlx.nn.RNN``, ``GRU`` and ``LSTM``, and have their constructors, parameters
and results. Layers, directions, dropout, ``lengths=``, ``reset=`` and the final state come on top.

A call takes one of three paths; :data:`paths` counts which, and :func:`require` insists on one:

- "kernel": the engine, on the CPU, for float32 and float64;
- "scan": the loop of ``elman.scan`` on MLX arrays, where there are no values yet, as inside
  ``mx.compile`` and ``mx.vmap``, and where neither the engine nor MLX's layer serves;
- "mlx": MLX's own layer, for its other dtypes and nonlinearities.

Outside MLX's transformations no gradient can come, and the engine keeps nothing for one. Within
them, after ``layer.eval()``, it keeps nothing either, and runs forward again if a gradient is asked
for: faster to serve, slower to train, the same to the bit.
"""

from elman.mlx.layers import (
    GRU,
    LSTM,
    RNN,
    accelerate,
    paths,
    require,
)

__all__ = ["GRU", "LSTM", "RNN", "accelerate", "paths", "require"]
