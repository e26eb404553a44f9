"""Flax Linen: ``RNN``, which runs Flax's own cells by the engine, and Flax's ``Bidirectional``."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false
# (parts of Flax are not typed)

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.core import meta
from flax.linen.module import _global_interceptor_stack as _interceptors
from flax.linen.recurrent import flip_sequences

from elman.jax import cells
from elman.jax.operators import paths

Bidirectional = linen.Bidirectional
_KINDS = {
    linen.SimpleCell: "RNN",
    linen.GRUCell: "GRU",
    linen.LSTMCell: "LSTM",
    linen.OptimizedLSTMCell: "LSTM",
}


class RNN(linen.RNN):
    """``flax.linen.RNN``, with its attributes, arguments and results; the cell has the parameters.

    The engine runs ``SimpleCell``, ``GRUCell``, ``LSTMCell`` and ``OptimizedLSTMCell`` with their
    default activations (``SimpleCell`` with relu too) where inputs, carry and parameters are of one
    type: float32, float64, bfloat16 or float16. All else goes by Flax's own scan, path "own"; and
    so does, uncounted, what ``init`` computes.

    With ``seq_lengths`` outputs past a row's length are 0, where Flax has what its cell makes of
    the padding; and a row of length 0 ends with its first carry.

    Parameters
    ----------
    inputs : (*batch, L, D), or (L, *batch, D) with ``time_major``; ``initial_carry`` and the rest
        as Flax has them. The carry is h, (*batch, H), or an LSTM's (c, h).

    >>> import elman.jax.linen, jax, jax.numpy as jnp
    >>> from flax import linen
    >>> rnn = elman.jax.linen.RNN(linen.OptimizedLSTMCell(8), return_carry=True)
    >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 6, 4)))
    >>> (c, h), outputs = rnn.apply(variables, jnp.ones((2, 6, 4)))
    >>> h.shape, outputs.shape
    ((2, 8), (2, 6, 8))
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        init_key: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run the cell over the inputs; each option that is given goes before the module's own."""
        inputs = jnp.asarray(inputs)
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        title = f"RNN of {type(self.cell).__name__}"
        time_axis = 0 if time_major else max(inputs.ndim - 2, 0)
        cell = None if self.is_initializing() else self._known()
        if cell is not None and initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
            initial_carry = self.cell.initialize_carry(key, shape)
        if cell is not None:
            cells.check_flax(title, cell, inputs, initial_carry, seq_lengths, time_axis)
        if cell is None or not cell.takes(inputs, *cells.parts(initial_carry)):
            if not self.is_initializing():
                paths.take("own", title)
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                init_key=init_key,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
            )
        flip = flip_sequences if reverse and not keep_order else None
        carry, outputs = cells.run_flax(
            cell, inputs, initial_carry, seq_lengths, time_axis, reverse, flip
        )
        return (carry, outputs) if return_carry else outputs

    def _known(self) -> cells.Known | None:
        if self.variable_axes or self.variable_broadcast != "params" or self.variable_carry:
            return None
        if _interceptors:  # which may want the calls of the cell's own layers
            return None
        parameters = meta.unbox(self.cell.variables.get("params", {}))
        return cells.read_flax("flax-linen", _KINDS, self.cell, partial(_tensor, parameters))


def _tensor(parameters: Any, name: str) -> Any:
    for part in name.split("."):
        parameters = parameters.get(part) if isinstance(parameters, Mapping) else None
    return parameters
