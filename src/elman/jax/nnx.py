"""Flax NNX: ``RNN``, which runs Flax's own cells by the engine, and Flax's ``Bidirectional``."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
# (parts of Flax are not typed)

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.nnx.nn.recurrent import flip_sequences

from elman.jax import cells
from elman.jax.operators import paths

Bidirectional = nnx.Bidirectional
_KINDS = {
    nnx.SimpleCell: "RNN",
    nnx.GRUCell: "GRU",
    nnx.LSTMCell: "LSTM",
    nnx.OptimizedLSTMCell: "LSTM",
}


class RNN(nnx.RNN):
    """``flax.nnx.RNN``, with its constructor, arguments and results; the cell keeps the weights.

    The engine runs ``SimpleCell``, ``GRUCell``, ``LSTMCell`` and ``OptimizedLSTMCell`` with their
    default activations (``SimpleCell`` with relu too) where inputs, carry and parameters are of one
    type: float32, float64, bfloat16 or float16. All else goes by Flax's own scan, path "own".

    With ``seq_lengths`` outputs past a row's length are 0, where Flax has what its cell makes of
    the padding; and a row of length 0 ends with its first carry.

    Parameters
    ----------
    inputs : (*batch, L, D), or (L, *batch, D) with ``time_major``; ``initial_carry`` and the rest
        as Flax has them. The carry is h, (*batch, H), or an LSTM's (c, h).

    >>> import elman.jax.nnx, jax.numpy as jnp
    >>> from flax import nnx
    >>> rnn = elman.jax.nnx.RNN(nnx.GRUCell(4, 8, rngs=nnx.Rngs(0)), return_carry=True)
    >>> carry, outputs = rnn(jnp.ones((2, 6, 4)), seq_lengths=jnp.array([6, 3]))
    >>> carry.shape, outputs.shape
    ((2, 8), (2, 6, 8))
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Run the cell over the inputs; each option that is given goes before the module's own."""
        inputs = jnp.asarray(inputs)
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        cell = cells.read_flax("flax-nnx", _KINDS, self.cell, partial(_tensor, self.cell))
        title = f"RNN of {type(self.cell).__name__}"
        time_axis = 0 if time_major else max(inputs.ndim - 2, 0)
        if cell is not None and initial_carry is None:
            rngs = self.rngs if rngs is None else rngs
            streams = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
            shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
            initial_carry = self.cell.initialize_carry(shape, streams)
        if cell is not None:
            cells.check_flax(title, cell, inputs, initial_carry, seq_lengths, time_axis)
        if cell is None or not cell.takes(inputs, *cells.parts(initial_carry)):
            paths.take("own", title)
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )
        flip = flip_sequences if reverse and not keep_order else None
        carry, outputs = cells.run_flax(
            cell, inputs, initial_carry, seq_lengths, time_axis, reverse, flip
        )
        return (carry, outputs) if return_carry else outputs


def _tensor(cell: Any, name: str) -> Any:
    """A tensor of one of the cell's linear layers, which somebody may have replaced."""
    layer_name, _, parameter = name.partition(".")
    layer = getattr(cell, layer_name, None)
    if type(layer) is not nnx.Linear or layer.dtype != cell.dtype:
        return None
    if layer.dot_general is not jax.lax.dot_general or layer.promote_dtype is not promote_dtype:
        return None
    tensor = getattr(layer, parameter)
    return None if tensor is None else tensor[...]
