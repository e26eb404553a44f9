"""The Keras package: ``keras.layers``' SimpleRNN, GRU and LSTM, and ``accelerate``.

The layers derive from Keras's (Keras 3), and have their constructors, configurations, weights and
files. Only what runs a sequence is Elman's, by the package of Keras's backend: ``elman.torch``,
``elman.jax``, or the engine on NumPy's arrays. TensorFlow's backend runs Keras's own code.

A call takes one of two paths; :data:`paths` counts which, and :func:`require` insists on one:

- "kernel": the engine, on the CPU, for float32, float64, bfloat16 and float16, any mask of a row's
  steps, and all options but those below;
- "keras": Keras's own code, for activations other than tanh and sigmoid (of a SimpleRNN tanh or
  relu), recurrent dropout in training, ``use_cudnn=True``, masks of other shapes, other devices and
  backends, and for whatever Keras refuses, so that the error is Keras's own.

JAX traces a call once for each program that it compiles, and so it is counted.
"""

from elman.keras.layers import GRU, LSTM, SimpleRNN, accelerate, paths, require

__all__ = ["GRU", "LSTM", "SimpleRNN", "accelerate", "paths", "require"]
