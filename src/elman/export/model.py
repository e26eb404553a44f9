"""A model to be exported: layers one behind the other, run a step or a sequence at a time."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (methods of arrays of any dtype are partly untyped)

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from elman.engine import Array
from elman.export.layers import ACTIVATIONS, Activation, Conv1d, Linear, float32
from elman.layers import GRU, LSTM, RNN
from elman.spec import each_of

Recurrent: TypeAlias = RNN | GRU | LSTM
Layer: TypeAlias = Recurrent | Linear | Conv1d | Activation
State: TypeAlias = tuple[Array, ...]  # of a layer: h or h and c, what a Conv1d has seen, or nothing
_LAYERS = (RNN, GRU, LSTM, Linear, Conv1d, *ACTIVATIONS.values())


class Model:
    """Layers one behind the other, as a C header has them.

    Parameters
    ----------
    layers : ``elman.RNN``, ``GRU`` and ``LSTM`` of one direction; ``Linear``, ``Conv1d``, ``Tanh``,
        ``Sigmoid``, ``ReLU`` and ``Softmax`` of this package. All weights are float32, and are
        those that a layer has when the model is made. Dropout takes no effect.
    initial : what the recurrent layers begin with, in order: for each of them h_0 (K, P), of an
        LSTM (h_0, c_0), K its num_layers, or None for zeros. Default: zeros.

    Raises TypeError for what is no such layer, ValueError for sizes that do not fit.

    The bits of its output are those of the C program, and do not depend on how a sequence is cut.

    >>> import elman, elman.export, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> head = elman.export.Linear(rng.standard_normal((1, 20), "float32"))
    >>> model = elman.export.Model([elman.LSTM(1, 20, seed=0), head])
    >>> model
    Model([LSTM(1, 20), Linear(20, 1)])
    >>> x = rng.standard_normal((100, 1), "float32")
    >>> whole, _ = model(x)
    >>> first, states = model(x[:64])
    >>> rest, _ = model(x[64:], states)
    >>> np.array_equal(np.concatenate([first, rest]), whole)
    True
    """

    def __init__(self, layers: Sequence[Layer], initial: Sequence[Any] | None = None) -> None:
        self.layers = [_checked(layer) for layer in layers]
        self.input_size, self.output_size = _sizes(self.layers)
        recurrent = [layer for layer in self.layers if isinstance(layer, Recurrent)]
        given = [None] * len(recurrent) if initial is None else list(initial)
        if len(given) != len(recurrent):
            raise ValueError(
                f"Model: initial must have one of each of {len(recurrent)} recurrent layers, "
                f"got {len(given)}"
            )
        states = iter(map(_initial, recurrent, given))
        #: What each recurrent layer begins with, (K, P) and (K, H); of other layers nothing.
        self.initial: list[State] = [
            next(states) if isinstance(layer, Recurrent) else () for layer in self.layers
        ]

    def __call__(self, x: Any, states: list[State] | None = None) -> tuple[Array, list[State]]:
        """Run the model.

        Parameters
        ----------
        x : (L, N, D), or (L, D) without a batch; float32.
        states : as a call before gave them. Default: the model begins anew.

        Returns
        -------
        output : (L, N, P), or (L, P).
        states : what each layer carries to the next step.

        Raises ValueError for a shape that is off, TypeError for another dtype.
        """
        x = float32("Model", "x", x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"Model: x must be (L, N, D) or (L, D) with D = {self.input_size}, got {x.shape}"
            )
        y = x if x.ndim == 3 else x[:, None]
        before = self._begin(y.shape[1]) if states is None else states
        after: list[State] = []
        with np.errstate(all="ignore"):  # what is not finite goes through
            for layer, state in zip(self.layers, before, strict=True):
                y, state = _run(layer, y, state)
                after.append(state)
        return (y if x.ndim == 3 else y[:, 0]), after

    def _begin(self, rows: int) -> list[State]:
        return [
            (np.zeros((layer.history, rows, layer.input_size), np.float32),)
            if isinstance(layer, Conv1d)
            else tuple(np.repeat(a[:, None], rows, 1) for a in initial)
            for layer, initial in zip(self.layers, self.initial, strict=True)
        ]

    def __repr__(self) -> str:
        return f"Model({self.layers})"


def _checked(layer: Any) -> Layer:
    if not isinstance(layer, _LAYERS):
        known = ", ".join(each.__name__ for each in _LAYERS)
        raise TypeError(f"Model: a layer must be one of {known}, got {type(layer)}")
    if not isinstance(layer, Recurrent):
        return layer
    if layer.spec.bidirectional:
        raise ValueError(f"Model: {layer.spec}: a model has one direction, got bidirectional=True")
    if layer.dtype != np.float32:
        raise TypeError(f"Model: {layer.spec}: weights must be float32, got {layer.dtype}")
    frozen = copy.copy(layer)  # load_state_dict gives the layer others, not this
    frozen.eval()
    return frozen


def _sizes(layers: Sequence[Layer]) -> tuple[int, int]:
    """The features that go in and come out."""
    first = size = 0
    for layer in layers:
        into, out = sizes(layer)
        if into and size and into != size:
            raise ValueError(f"Model: {layer} reads {into} features, the layer before gives {size}")
        first, size = first or into, out or size
    if not first:
        raise ValueError("Model: a layer with weights must be there, of others no size is known")
    return first, size


def sizes(layer: Layer) -> tuple[int, int]:
    """The features of a layer's input and output; of an activation 0, as it takes any."""
    if isinstance(layer, Recurrent):
        return layer.spec.input_size, layer.spec.output_size
    if isinstance(layer, (Linear, Conv1d)):
        return layer.input_size, layer.output_size
    return 0, 0


def _initial(layer: Recurrent, given: Any) -> State:
    """The states that a layer begins with."""
    spec = layer.spec
    expected = {name: (spec.num_layers, size) for name, size in spec.state_sizes.items()}
    if given is None:
        return tuple(np.zeros(shape, np.float32) for shape in expected.values())
    names = [f"{name}_0" for name in expected]
    values = each_of(f"Model: {spec}", names, (given,) if len(names) == 1 else given)
    arrays = [float32(f"Model: {spec}", n, a) for n, a in zip(names, values, strict=True)]
    for name, a, shape in zip(names, arrays, expected.values(), strict=True):
        if a.shape != shape:
            raise ValueError(f"Model: {spec}: {name} must have shape {shape}, got {a.shape}")
    return tuple(arrays)


def _run(layer: Layer, x: Array, state: State) -> tuple[Array, State]:
    """A layer's output (L, N, P) of x (L, N, D), and its state after that."""
    if isinstance(layer, Conv1d):
        y, after = layer(x, *state)
        return y, (after,)
    if not isinstance(layer, Recurrent):
        return layer(x), ()
    if layer.spec.batch_first:
        y, after = layer(x.swapaxes(0, 1), _one_or_all(state))
        y = y.swapaxes(0, 1)
    else:
        y, after = layer(x, _one_or_all(state))
    return y, after if isinstance(after, tuple) else (after,)


def _one_or_all(state: State) -> Any:
    return state[0] if len(state) == 1 else state
