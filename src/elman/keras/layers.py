"""The layers of the Keras package: ``keras.layers``' classes on Elman's engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# (parts of Keras are not typed)

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from elman.keras import sequence
from elman.paths import Paths
from elman.spec import CELLS, Cell
from elman.swap import Names, swap, turn_each

_paths = Paths("kernel", "keras")
paths, require = _paths.counts, _paths.require

_name = keras.config.backend()
# The module of Keras's backend, or None where there is none, as of TensorFlow.
_backend: Any = (
    import_module(f"elman.keras.on_{_name}") if _name in ("jax", "numpy", "torch") else None
)

_TANH = (keras.activations.tanh, ops.tanh)
_RELU = (keras.activations.relu, ops.relu)
_SIGMOID = (keras.activations.sigmoid, ops.sigmoid)


class _Layer(keras.layers.RNN if TYPE_CHECKING else object):
    """What all layers share: how a sequence is run. All else is Keras's."""

    # Pickles refer to it, and of the classes below none is found by its name.
    _unpickle_model = keras.layers.Layer._unpickle_model  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]

    def _engines_cell(self) -> Cell | None:
        """The engine's cell for the layer's activations, or None."""
        raise NotImplementedError

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: Any = False
    ) -> tuple[Any, Any, Any]:
        """What Keras's ``call`` runs the sequence by.

        sequences (N, L, D), the states (N, H), mask (N, L). Returns the last output (N, H), the
        outputs, and the last states.
        """
        cell, own = self._engines_cell(), self.cell
        states, steps = _listed(initial_state), _listed(mask)[0]
        kept = (own.kernel, own.recurrent_kernel, own.bias)
        weights = [ops.convert_to_tensor(w) for w in kept if w is not None]
        given = (sequences, states, steps, weights)
        served = cell is not None and self._serves(training) and _served(cell, *given)
        path = "kernel" if served else "keras"
        _paths.check(path, type(self).__name__)
        if not getattr(sequences, "is_meta", False):  # by which Keras asks for shapes, on PyTorch's
            paths[path] += 1
        if cell is None or not served:
            return super().inner_loop(sequences, initial_state, mask, training)
        x = sequences
        if training and own.dropout:
            x = x * ops.expand_dims(own.get_dropout_mask(x[:, 0]), 1)
        if self.stateful:  # Keras writes into them before gradients are asked for
            states = [ops.copy(state) for state in states]
        if self.go_backwards:
            x = ops.flip(x, 1)
        arranged = sequence.arrange(cell, _backend, *weights)
        run = partial(_backend.run, cell, arranged, states)
        if steps is None:
            output, last = run(x)
            return last[0], output, last
        steps = ops.cast(ops.flip(steps, 1) if self.go_backwards else steps, "bool")
        zeros, zeroed = _backend.mask_rule(self.unroll, self.zero_output_for_mask)
        first = ops.zeros_like(states[0]) if zeros else states[0]
        return sequence.run_masked(run, x, steps, first, zeroed, self.return_sequences)

    def _serves(self, training: Any) -> bool:
        """Whether the engine computes what the options say."""
        own: Any = self.cell
        if _backend is None or getattr(self, "use_cudnn", "auto") is True:
            return False
        if not training:
            return True
        by_gate = getattr(own, "implementation", 2) == 1  # each gate has a mask of its own
        return not own.recurrent_dropout and (not own.dropout or (own.dropout < 1 and not by_gate))


def _listed(value: Any) -> list[Any]:
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _served(cell: Cell, x: Any, states: Sequence[Any], mask: Any, weights: Sequence[Any]) -> bool:
    """Whether the engine takes these tensors. If not, Keras itself says best what is off."""
    if len(x.shape) != 3 or len(weights[1].shape) != 2:
        return False
    (N, L, D), H = x.shape, weights[1].shape[0]
    return (
        L > 0
        and [tuple(w.shape) for w in weights] == sequence.shapes(cell, D, H, len(weights) > 2)
        and [tuple(s.shape) for s in states] == [(N, H)] * len(cell.states)
        and (mask is None or tuple(getattr(mask, "shape", ())) == (N, L))
        and _backend.served(x, states, weights)
    )


# A file names the class as registered, and as of Keras's own module: where nobody imported Elman,
# Keras finds its own class there.


@keras.saving.register_keras_serializable("elman")
class SimpleRNN(_Layer, keras.layers.SimpleRNN):
    """``keras.layers.SimpleRNN`` on Elman's engine: the same arguments, weights and results.

    ::

        h' = tanh(x_t W + h U + b)     or relu in place of tanh

    ``kernel`` is W (D, H), ``recurrent_kernel`` U (H, H), ``bias`` b (H). Called as :class:`GRU`.

    >>> import numpy as np, elman.keras
    >>> elman.keras.SimpleRNN(4, activation="relu")(np.ones((2, 5, 3), "float32")).shape
    torch.Size([2, 4])
    """

    __module__ = keras.layers.SimpleRNN.__module__

    def _engines_cell(self) -> Cell | None:
        if self.activation in _TANH:
            return CELLS["rnn_tanh"]
        return CELLS["rnn_relu"] if self.activation in _RELU else None


class _Gated(_Layer):
    """What GRU and LSTM share: gates by the sigmoid, and tanh."""

    def _is_plain(self) -> bool:
        own: Any = self.cell
        return own.activation in _TANH and own.recurrent_activation in _SIGMOID


@keras.saving.register_keras_serializable("elman")
class GRU(_Gated, keras.layers.GRU):
    """``keras.layers.GRU`` on Elman's engine: the same arguments, weights and results.

    ::

        z  = σ(x_t W_z + b_z + h U_z + c_z)          update gate
        r  = σ(x_t W_r + b_r + h U_r + c_r)          reset gate
        n  = tanh(x_t W_h + b_h + r * (h U_h + c_h)) candidate, or (r * h) U_h in place
        h' = z * h + (1 - z) * n

    The second form is that of ``reset_after=False``, which has no c. ``kernel`` is W (D, 3H),
    ``recurrent_kernel`` U (H, 3H), ``bias`` b and c (2, 3H), or b alone (3H).

    A call takes inputs (N, L, D), ``mask`` (N, L), ``training`` and ``initial_state`` (N, H), and
    gives h (N, H), with ``return_sequences`` at every step (N, L, H), with ``return_state`` the
    last one beside. Errors are Keras's own.

    >>> import numpy as np, elman.keras
    >>> gru = elman.keras.GRU(4, return_sequences=True)
    >>> with elman.keras.require("kernel"):
    ...     output = gru(np.ones((2, 5, 3), "float32"), mask=np.array([[1, 1, 1, 0, 0], [1] * 5]))
    >>> output.shape
    torch.Size([2, 5, 4])
    """

    __module__ = keras.layers.GRU.__module__

    def _engines_cell(self) -> Cell | None:
        if not self._is_plain():
            return None
        return CELLS["gru" if self.reset_after else "gru_reset_before"]


@keras.saving.register_keras_serializable("elman")
class LSTM(_Gated, keras.layers.LSTM):
    """``keras.layers.LSTM`` on Elman's engine: the same arguments, weights and results.

    ::

        i  = σ(x_t W_i + h U_i + b_i)    input gate
        f  = σ(x_t W_f + h U_f + b_f)    forget gate
        g  = tanh(x_t W_c + h U_c + b_c) cell candidate
        o  = σ(x_t W_o + h U_o + b_o)    output gate
        c' = f * c + i * g
        h' = o * tanh(c')

    ``kernel`` is W (D, 4H), ``recurrent_kernel`` U (H, 4H), ``bias`` b (4H). Called as
    :class:`GRU`, with two states, h and c.

    >>> import numpy as np, elman.keras
    >>> output, h, c = elman.keras.LSTM(4, return_state=True)(np.ones((2, 5, 3), "float32"))
    >>> output.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    __module__ = keras.layers.LSTM.__module__

    def _engines_cell(self) -> Cell | None:
        return CELLS["lstm"] if self._is_plain() else None


_OURS = {
    keras.layers.GRU: GRU,
    keras.layers.LSTM: LSTM,
    keras.layers.SimpleRNN: SimpleRNN,
}
#: For doctest, to which the classes are of Keras's modules.
__test__ = {ours.__name__: ours for ours in _OURS.values()}


def accelerate(model: keras.layers.Layer, undo: bool = False) -> Names:
    """Turn every stock SimpleRNN, GRU and LSTM of a model into Elman's, in place.

    The layers stay the same objects, with their weights and names; only their class changes.
    Returns the names of the layers that it turned; a second call finds none. Subclasses of Keras's
    are left alone: the list's attribute ``left`` has their names, each with the reason. So are
    cells within ``keras.layers.RNN``. A model without any such layer gets a UserWarning. With
    ``undo=True`` it turns back what it had turned, and returns their names.

    What the model itself was compiled to, ``train_function`` and the like, is made anew at its next
    use. Of a model that is a part of another one, which has functions of its own, call it on that
    one.

    >>> import keras, elman.keras
    >>> model = keras.Sequential([keras.layers.Dense(3), keras.layers.GRU(4, name="memory")])
    >>> elman.keras.accelerate(model)
    ['memory']
    >>> elman.keras.accelerate(model, undo=True)
    ['memory']
    """
    if not isinstance(model, keras.layers.Layer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"accelerate: expected a Keras model or layer, got {type(model)}")
    layers = model._flatten_layers()  # pyright: ignore[reportPrivateUsage]
    names = turn_each(((layer.name, layer) for layer in layers), swap(_OURS, undo))
    if names and isinstance(model, keras.Model):
        model.train_function = model.test_function = model.predict_function = None
    return names
