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
from elman.swap import swap

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
        if cell is None or not self._serves(training) or not _served(cell, *given):
            _paths.take("keras", type(self).__name__)
            return super().inner_loop(sequences, initial_state, mask, training)
        _paths.take("kernel", type(self).__name__)
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


def _served(
    cell: Cell, x: Any, states: Sequence[Any], mask: Any, weights: Sequence[Any]
) -> bool:
    """Whether the engine takes these tensors. If not, Keras itself says best what is off."""
    if len(x.shape) != 3 or len(weights[1].shape) != 2:
        return False
    (N, L, D), H = x.shape, weights[1].shape[0]
    return (
        L > 0
        and [tuple(w.shape) for w in weights] == sequence.shapes(cell, D, H, len(weights) > 2)
        and [tuple(s.shape) for s in states] == [(N, H)] * len(cell.states)
        and (mask is None or tuple(mask.shape) == (N, L))
        and _backend.served(x, states, weights)
    )


@keras.saving.register_keras_serializable("elman")
class SimpleRNN(_Layer, keras.layers.SimpleRNN):
    """``keras.layers.SimpleRNN`` on Elman's engine: the same arguments, weights and results.

    ::

        h_t = tanh(x_t kernel + h_{t-1} recurrent_kernel + bias)     or relu in place of tanh

    >>> import numpy as np, elman.keras
    >>> elman.keras.SimpleRNN(4, activation="relu")(np.ones((2, 5, 3), "float32")).shape
    (2, 4)
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
    __module__ = keras.layers.GRU.__module__

    def _engines_cell(self) -> Cell | None:
        if not self._is_plain():
            return None
        return CELLS["gru" if self.reset_after else "gru_reset_before"]


@keras.saving.register_keras_serializable("elman")
class LSTM(_Gated, keras.layers.LSTM):
    __module__ = keras.layers.LSTM.__module__

    def _engines_cell(self) -> Cell | None:
        return CELLS["lstm"] if self._is_plain() else None


_OURS = {
    keras.layers.GRU: GRU,
    keras.layers.LSTM: LSTM,
    keras.layers.SimpleRNN: SimpleRNN,
}
#: For doctest, which believes that the classes are of Keras's own modules.
__test__ = {ours.__name__: ours for ours in _OURS.values()}


def accelerate(model: keras.layers.Layer, undo: bool = False) -> list[str]:
    """Turn every stock GRU, LSTM and SimpleRNN of a model into Elman's, in place.
    """
    layers = model._flatten_layers()
    names = swap(((layer.name, layer) for layer in layers), _OURS, undo)
    if names and isinstance(model, keras.Model):
        model.train_function = model.test_function = model.predict_function = None
    return names
