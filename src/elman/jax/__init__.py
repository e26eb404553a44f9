"""The JAX package: recurrent layers as pure functions, and stand-ins for Flax's and Equinox's.

:func:`rnn`, :func:`gru` and :func:`lstm` run one direction of one layer. They can be jitted,
differentiated, mapped, exported. ``elman.jax.nnx``, ``elman.jax.linen`` and ``elman.jax.equinox``,
imported where they are wanted, run the cells of those libraries by them.

A layer takes one of these paths. Which one is known when a program is compiled, for it depends on
the device. :data:`paths` counts the layers of each program that is compiled, not its calls, and
within :func:`require` a program that would take another path fails to compile; one compiled before
is not looked at again.

- "kernel": the engine, on the CPU, within the program by XLA's foreign function interface;
- "scan": a ``lax.scan`` over the same equations, on other devices; and on all of them for
  derivatives in forward mode, and for those of the second order and beyond;
- "own": the loop of Flax or Equinox, for what the engine has not; counted when it is traced.

Each call takes as many threads as ``elman.set_num_threads`` allows.
"""

from elman.jax.functions import gru, lstm, rnn
from elman.jax.operators import paths as _paths

paths, require = _paths.counts, _paths.require

__all__ = ["gru", "lstm", "paths", "require", "rnn"]
