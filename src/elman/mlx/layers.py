"""The layers and cells of the MLX package: ``mlx.nn``'s classes on Elman's engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# (parts of MLX are not typed)

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from elman import stack
from elman.mlx.operators import (
    Function,
    as_extent,
    copied,
    ready,
    retained,
    run,
    transformed,
    zeros,
)
from elman.paths import Paths
from elman.spec import (
    CELLS,
    Cell,
    Shape,
    Spec,
    check_lengths,
    check_lengths_lie_within,
    check_reset,
    gru,
)
from elman.swap import Names, swap, turn_each

_paths = Paths("kernel", "scan", "mlx")
paths, require = _paths.counts, _paths.require


_Weights = list[list[list[mx.array]]]  # of each layer, each direction
_Run = Callable[[int, list[Any], Any], tuple[list[Any], Any]]


class _Layer(nn.Module):
    """What all layers share: everything but the constructor, and how states are given."""

    _stock: Any  # MLX's class
    _names: tuple[str, ...]  # of MLX's weights, in the order of ``spec.Weights``
    # Of a layer that accelerate turned:
    num_layers, bidirectional, dropout, recompute = 1, False, 0.0, False

    def _cell(self) -> Cell:
        raise NotImplementedError

    def _weights(self) -> list[Any]:
        """Of one direction, what there is of them."""
        # Found at once in the dictionary that a module is; None is an attribute beside it.
        weights = [self[name] if name in self else getattr(self, name) for name in self._names]
        return [w for w in weights if w is not None]

    def _own(self, spec: Spec, *arguments: Any) -> None:
        """Make the parameters: those of MLX's layer, or lists of layers that have them."""
        nn.Dropout(spec.dropout)  # which refuses 1
        if spec.num_layers * spec.directions == 1:
            self._stock.__init__(self, spec.input_size, spec.hidden_size, *arguments)
        else:
            nn.Module.__init__(self)
            sizes = [spec.input_size] + [spec.directions * spec.output_size] * (spec.num_layers - 1)
            for name in ("layers", "layers_reverse")[: spec.directions]:
                one = _OURS[self._stock]
                self[name] = [one(size, spec.hidden_size, *arguments) for size in sizes]
        self.hidden_size, self.num_layers = spec.hidden_size, spec.num_layers
        self.bidirectional, self.dropout = spec.bidirectional, spec.dropout

    @property
    def _parts(self) -> list[list[Any]]:
        """The layers that own the parameters: for each of num_layers, one a direction."""
        if "layers" not in self:
            return [[self]]
        columns = [self[name] for name in ("layers", "layers_reverse") if name in self]
        return [list(parts) for parts in zip(*columns, strict=True)]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _extra_repr(self) -> str:
        if "layers" not in self:
            return self._stock._extra_repr(self)
        names = ("num_layers", "bidirectional", "dropout")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _call(
        self,
        x: mx.array,
        given: dict[str, mx.array | None],
        lengths: Any,
        reset: Any,
        final: bool,
    ) -> tuple[list[mx.array], list[mx.array]]:
        """Run the layer from the states given, by MLX's names of them.

        Returns each state at every step, and if `final` those after the last.
        """
        weights = [[part._weights() for part in parts] for parts in self._parts]
        lead = self._lead(x, given, weights[0][0][0].shape[1])
        states, cell, extent = _alike(x, list(given.values())), self._cell(), (None, None)
        if lengths is not None or reset is not None:
            extent = self._extent(lengths, reset, lead, x.shape[-2])
        there = [a for a in states if a is not None]
        within = transformed()
        settle = retained if within else ready
        path = self._path(cell, [x, *there, *chain(*chain(*weights))], extent, settle)
        _paths.take(path, type(self).__name__, self.num_layers)
        if path == "mlx":
            every = self._stock.__call__(self, x, *given.values())
            every = every if isinstance(every, tuple) else [every]
            return list(every), [a[..., -1, :] for a in every]
        if path == "kernel" and within is False:
            # No gradient can come: the call is NumPy's, and takes no operation of MLX's.
            arrays = [None if a is None else np.asarray(a) for a in (x, *states)]
            every, ends = self._stacked(np, _plain(cell, weights, extent), arrays, lead, final)
            return [copied(a) for a in every], [copied(a) for a in ends]
        layer = self._traced(path, cell, x, weights, extent, final, settle)
        return self._stacked(mx, layer, [x, *states], lead, final)

    def _stacked(
        self, xp: Any, layer: _Run, arrays: list[Any], lead: Shape, final: bool
    ) -> tuple[list[Any], list[Any]]:
        """Run all layers on x and the states, arrays of the library xp."""
        x, *states = arrays
        L, D = x.shape[-2:]
        if len(lead) != 1 or x.shape[:-2] != lead:
            x = xp.broadcast_to(x, (*lead, L, D)).reshape(math.prod(lead), L, D)
        given = any(a is not None for a in states)
        first = self._first(xp, states, lead, x.dtype) if given else None
        between = self._between() if self.num_layers > 1 else None
        # What goes from layer to layer is each state at every step, of which h is read.
        every, finals = stack.run(self.num_layers, self._directions, layer, [x], first, between)
        if len(lead) != 1:
            every = [a.reshape(*lead, L, a.shape[-1]) for a in every]
        return every, self._ends(xp, finals, lead, len(states)) if final else []

    def _ends(self, xp: Any, finals: list[Any], lead: Shape, states: int) -> list[Any]:
        """Each of the final states, as the caller has them."""
        end, shape = xp.concatenate(finals), self._state_shape(lead)
        each = [end] if states == 1 else xp.split(end, states, -1)
        return [a.reshape(shape) for a in each]

    def _traced(
        self,
        path: str,
        cell: Cell,
        x: mx.array,
        weights: _Weights,
        extent: tuple[Any, Any],
        final: bool,
        settle: Callable[..., bool],
    ) -> _Run:
        """A layer on MLX's arrays, which may be differentiated."""
        top, options = len(weights) - 1, (self.training, self.recompute)

        def layer(k: int, below: list[Any], first: Any) -> tuple[list[Any], Any]:
            given, whole = first is not None, k == top and len(cell.states) > 1
            function = Function(cell, len(weights[k]), *extent, *options, given, whole, final)
            arrays = [below[0], *([first] if given else []), *chain(*weights[k])]
            if path == "kernel" and (given or below[0] is not x):
                settle(arrays)  # which were made since
            every = getattr(function, path)(*arrays)
            return every, every.pop() if final else None

        return layer

    def _between(self) -> Callable[[list[Any]], list[Any]] | None:
        """The dropout between layers."""
        if not (self.training and self.dropout > 0):
            return None
        dropout = nn.Dropout(self.dropout)

        def drop(below: list[Any]) -> list[Any]:
            x = below[0]
            return [dropout(x) if isinstance(x, mx.array) else np.asarray(dropout(copied(x)))]

        return drop

    def _lead(self, x: Any, given: dict[str, Any], D: int) -> Shape:
        """The axes in front: x's, and for a single state also the states'; all are checked."""
        title = type(self).__name__
        if not isinstance(x, mx.array):
            raise TypeError(f"{title}: x must be an mx.array, got {type(x).__name__}")
        for name, a in given.items():
            if a is not None and not isinstance(a, mx.array):
                raise TypeError(f"{title}: {name} must be an mx.array, got {type(a).__name__}")
        shape = x.shape
        if len(shape) < 2 or shape[-1] != D or shape[-2] == 0:
            raise ValueError(f"{title}: x must be (..., L, D), L > 0 and D = {D}, got {shape}")
        lead = shape[:-2]
        for name, a in given.items():
            lead = lead if a is None else self._wider(lead, name, a.shape)
        return lead

    def _wider(self, lead: Shape, name: str, shape: Shape) -> Shape:
        """The axes in front after a state of this shape was broadcast with them."""
        expected = self._state_shape(lead)
        if shape == expected:
            return lead
        if "layers" not in self and shape[-1:] == (self.hidden_size,):
            with suppress(ValueError):
                return mx.broadcast_shapes(lead, shape[:-1])
        title = type(self).__name__
        raise ValueError(f"{title}: {name} must have shape {expected}, got {shape}")

    def _state_shape(self, lead: Shape) -> Shape:
        states = self.num_layers * self._directions
        return (*((states,) if states > 1 else ()), *lead, self.hidden_size)

    def _first(self, xp: Any, given: list[Any], lead: Shape, dtype: Any) -> Any:
        """The states given, side by side (K, N, S), zeros for one that is not."""
        shape = (self.num_layers * self._directions, math.prod(lead), self.hidden_size)
        state = self._state_shape(lead)
        each = [
            xp.zeros(shape, dtype) if a is None else xp.broadcast_to(a, state).reshape(shape)
            for a in given
        ]
        return each[0] if len(each) == 1 else xp.concatenate(each, -1)

    def _extent(self, lengths: Any, reset: Any, lead: Shape, L: int) -> tuple[Any, Any]:
        """Lengths as (N,) and reset as (L, N), after a check of both."""
        title = type(self).__name__
        if lengths is not None:
            lengths = _array(title, "lengths", lengths)
            integral = mx.issubdtype(lengths.dtype, mx.integer)
            check_lengths(title, lengths.shape, integral, lead, ValueError)
            lengths = lengths.reshape(-1)
            if ready([lengths]):
                check_lengths_lie_within(title, lengths.tolist(), L, ValueError)
        if reset is not None:
            reset = _array(title, "reset", reset)
            check_reset(title, reset.shape, reset.dtype == mx.bool_, (*lead, L), ValueError)
            reset = reset.reshape(math.prod(lead), L).T
        return lengths, reset

    def _path(
        self,
        cell: Cell,
        arrays: list[mx.array],
        extent: tuple[Any, Any],
        settle: Callable[..., bool],
    ) -> str:
        dtypes = [a.dtype for a in arrays]
        served = dtypes[0] in _SERVED and dtypes.count(dtypes[0]) == len(dtypes)
        if served and cell.name in CELLS:
            return "kernel" if settle(arrays, extent) else "scan"
        plain = "layers" not in self and all(a is None for a in extent)
        return "mlx" if plain and cell.gated is None else "scan"


class _OneState(_Layer):
    """What RNN and GRU share: a call with h alone."""

    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        return_state: bool = False,
    ) -> Any:
        """Run the layer, as ``mlx.nn``'s does.

        Parameters
        ----------
        x : (..., L, D): any leading axes, written N below, then steps and features.
        hidden : (N, H), or what broadcasts with x's leading axes; (K, N, H) where
            K = num_layers * directions is above 1. Default: zeros.
        lengths : integers (N), 0 <= length <= L. Steps at or past a row's length are not computed:
            x there is never read, output there is 0, and h_n is the state after the row's last
            step, or hidden if it has none. The reverse direction starts at each row's last step.
        reset : booleans (N, L). True at t: a new episode starts there, and nothing crosses from
            t-1 to t in either direction.
        return_state : return h_n as well. Default: False.

        Returns
        -------
        output : (N, L, directions*H), the last layer's state at every step.
        h_n : the final states, shaped as hidden; layer k's direction d is at k*directions + d.

        Raises
        ------
        ValueError : a shape that is off, no steps, lengths outside 0..L. Where values are not
            known, as within mx.compile, those count as 0 or L.
        TypeError : x or hidden that is not an ``mx.array``.
        """
        (output,), states = self._call(x, {"hidden": hidden}, lengths, reset, return_state)
        return (output, *states) if return_state else output


class RNN(_OneState, nn.RNN):
    """``mlx.nn.RNN`` on Elman's engine: the same arguments, parameters and results.

    ::

        h_t = tanh(Wxh x_t + Whh h_{t-1} + bias)     or another nonlinearity in place of tanh

    Parameters
    ----------
    input_size : D, features of x.
    hidden_size : H, hidden units.
    bias : with a bias. Default: True.
    nonlinearity : a function of arrays. The engine knows ``nn.tanh``, ``mx.tanh`` and ``nn.relu``.
        Default: ``nn.tanh``.
    num_layers : layers; each above the first reads the output of the one below. Default: 1.
    bidirectional : also run from the end to the start. Default: False.
    dropout : probability, below 1, that a value between layers is zeroed in training. Default: 0.
    recompute : changes nothing for an RNN, which keeps its states alone for backward. Default:
        False.

    The parameters are ``Wxh`` (H, D), ``Whh`` (H, H) and ``bias`` (H). With more than one layer or
    direction, layer k has them under ``layers.{k}``, its second direction under
    ``layers_reverse.{k}``.

    >>> import mlx.core as mx, elman.mlx
    >>> rnn = elman.mlx.RNN(3, 4, bidirectional=True)
    >>> output, h_n = rnn(mx.ones((2, 5, 3)), lengths=[5, 1], return_state=True)
    >>> output.shape, h_n.shape
    ((2, 5, 8), (2, 2, 4))
    """

    _stock = nn.RNN
    _names = ("Wxh", "Whh", "bias")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Callable[[mx.array], mx.array] | None = None,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        options = (num_layers, bias, False, dropout, bidirectional)
        spec = Spec(CELLS["rnn_tanh"], input_size, hidden_size, *options)
        self._own(spec, bias, nonlinearity)
        self.recompute = recompute

    def _cell(self) -> Cell:
        function = self._parts[0][0].nonlinearity
        for known, name in _NONLINEARITIES:
            if function is known:
                return CELLS[name]

        def forward(x: mx.array, u: mx.array, *_: Any) -> mx.array:
            return function(x + u)

        return replace(CELLS["rnn_tanh"], name="rnn", forward=forward)


class GRU(_OneState, nn.GRU):
    """``mlx.nn.GRU`` on Elman's engine: the same arguments, parameters and results.

    ::

        r  = σ(Wx_r x + b_r + Wh_r h)
        z  = σ(Wx_z x + b_z + Wh_z h)
        n  = tanh(Wx_n x + b_n + r * (Wh_n h + bhn))     or Wh_n (r * h) + bhn
        h' = (1 - z) * n + z * h

    Parameters
    ----------
    input_size : D, features of x.
    hidden_size : H, hidden units.
    bias : with b and bhn. Default: True.
    num_layers : layers; each above the first reads the output of the one below. Default: 1.
    bidirectional : also run from the end to the start. Default: False.
    dropout : probability, below 1, that a value between layers is zeroed in training. Default: 0.
    reset_after : whether the reset gate is applied after the recurrent product, as MLX does it.
        False gives the second form, a layer that MLX has not, whose weights look the same.
        Default: True.
    recompute : keep for backward the states alone, and compute the gates from them once more: less
        memory, and up to 1.4 times the time of training. Default: False.

    The parameters are ``Wx`` (3H, D), ``Wh`` (3H, H) and ``b`` (3H), rows in the order r, z, n, and
    ``bhn`` (H). With more than one layer or direction, layer k has them under ``layers.{k}``, its
    second direction under ``layers_reverse.{k}``.

    >>> import mlx.core as mx, elman.mlx
    >>> gru = elman.mlx.GRU(3, 4, num_layers=2, dropout=0.1)
    >>> gru(mx.ones((2, 5, 3)), lengths=mx.array([5, 1])).shape
    (2, 5, 4)
    >>> list(gru.parameters()["layers"][1])
    ['Wx', 'Wh', 'b', 'bhn']
    """

    _stock = nn.GRU
    _names = ("Wx", "Wh", "b", "bhn")
    reset_after = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        reset_after: bool = True,
        recompute: bool = False,
    ) -> None:
        options = (num_layers, bias, False, dropout, bidirectional)
        self._own(Spec(gru("GRU", reset_after), input_size, hidden_size, *options), bias)
        for part in chain(*self._parts):
            part.reset_after = reset_after
        self.reset_after, self.recompute = reset_after, recompute

    def _cell(self) -> Cell:
        return gru("GRU", self.reset_after)

    def _extra_repr(self) -> str:
        return super()._extra_repr() + ("" if self.reset_after else ", reset_after=False")


class LSTM(_Layer, nn.LSTM):
    """``mlx.nn.LSTM`` on Elman's engine: the same arguments, parameters and results.

    ::

        i  = σ(Wx_i x + Wh_i h + bias_i)
        f  = σ(Wx_f x + Wh_f h + bias_f)
        g  = tanh(Wx_g x + Wh_g h + bias_g)
        o  = σ(Wx_o x + Wh_o h + bias_o)
        c' = f * c + i * g
        h' = o * tanh(c')

    Parameters
    ----------
    input_size : D, features of x.
    hidden_size : H, hidden units.
    bias : with a bias. Default: True.
    num_layers : layers; each above the first reads the output of the one below. Default: 1.
    bidirectional : also run from the end to the start. Default: False.
    dropout : probability, below 1, that a value between layers is zeroed in training. Default: 0.
    recompute : keep for backward the states alone, and compute the gates from them once more: less
        memory, and up to 1.4 times the time of training. Default: False.

    The parameters are ``Wx`` (4H, D), ``Wh`` (4H, H) and ``bias`` (4H), rows in the order i, f, g,
    o. With more than one layer or direction, layer k has them under ``layers.{k}``, its second
    direction under ``layers_reverse.{k}``.

    >>> import mlx.core as mx, elman.mlx
    >>> lstm = elman.mlx.LSTM(3, 4)
    >>> output, cells = lstm(mx.ones((2, 5, 3)))
    >>> output.shape, cells.shape
    ((2, 5, 4), (2, 5, 4))
    >>> _, _, (h_n, c_n) = lstm(mx.ones((2, 5, 3)), lengths=[5, 1], return_state=True)
    >>> mx.array_equal(c_n, mx.stack([cells[0, 4], cells[1, 0]])).item()
    True
    """

    _stock = nn.LSTM
    _names = ("Wx", "Wh", "bias")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        options = (num_layers, bias, False, dropout, bidirectional)
        self._own(Spec(CELLS["lstm"], input_size, hidden_size, *options), bias)
        self.recompute = recompute

    def _cell(self) -> Cell:
        return CELLS["lstm"]

    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        return_state: bool = False,
    ) -> Any:
        """Run the layer, as ``mlx.nn``'s does.

        Parameters
        ----------
        x : (..., L, D): any leading axes, written N below, then steps and features.
        hidden, cell : h and c before the first step, each (N, H), or what broadcasts with x's
            leading axes; (K, N, H) where K = num_layers * directions is above 1. Default: zeros.
        lengths : integers (N), 0 <= length <= L. Steps at or past a row's length are not computed:
            x there is never read, output and cells there are 0, and h_n and c_n are the states
            after the row's last step, or hidden and cell if it has none. The reverse direction
            starts at each row's last step.
        reset : booleans (N, L). True at t: a new episode starts there, and nothing crosses from
            t-1 to t in either direction.
        return_state : return (h_n, c_n) as well. Default: False.

        Returns
        -------
        output, cells : (N, L, directions*H), the last layer's h and c at every step.
        (h_n, c_n) : the final states, shaped as hidden and cell; layer k's direction d is at
            k*directions + d.

        Raises
        ------
        ValueError : a shape that is off, no steps, lengths outside 0..L. Where values are not
            known, as within mx.compile, those count as 0 or L.
        TypeError : x, hidden or cell that is not an ``mx.array``.
        """
        given = {"hidden": hidden, "cell": cell}
        (output, cells), states = self._call(x, given, lengths, reset, return_state)
        return (output, cells, tuple(states)) if return_state else (output, cells)


def _plain(cell: Cell, weights: _Weights, extent: tuple[Any, Any]) -> _Run:
    """A layer on NumPy's arrays."""
    top = len(weights) - 1 if len(cell.states) > 1 else None
    whole_extent = as_extent(*extent)

    def layer(k: int, below: list[Any], first: Any) -> tuple[list[Any], Any]:
        each = [[np.asarray(w) for w in one] for one in weights[k]]
        if first is None:
            first = zeros(np, cell, below[0], each)
        every, end, _ = run(cell, below[0], first, each, whole_extent, whole=k == top)
        return every, end

    return layer


def _array(title: str, name: str, values: Any) -> mx.array:
    """Lengths or resets as an array of MLX's."""
    try:
        if isinstance(values, np.ndarray):  # of any strides and byte order
            values = values.astype(values.dtype.newbyteorder("="), order="C")
        return mx.array(values)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{title}: {name} is nothing that MLX reads: {e}") from e


def _alike(x: mx.array, states: list[mx.array | None]) -> list[mx.array | None]:
    """States of one type, that of all and of x, which zeros have."""
    if len(states) == 1 or all(a is None for a in states):
        return states
    dtype = mx.result_type(*(x if a is None else a for a in states))
    return [None if a is None else a.astype(dtype) for a in states]


_SERVED = (mx.float32, mx.float64)
_NONLINEARITIES = ((nn.tanh, "rnn_tanh"), (mx.tanh, "rnn_tanh"), (nn.relu, "rnn_relu"))
_OURS = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}


def accelerate(model: nn.Module, undo: bool = False) -> Names:
    """Turn every stock RNN, GRU and LSTM of a model into Elman's, in place.

    The modules stay the same objects with their parameters; only their class changes, so that
    optimisers and other references hold. Returns the names of the modules that it turned, "" for
    the model itself; a second call finds none. Subclasses of MLX's classes are left alone: the
    list's attribute ``left`` has their names, each with the reason. A model without any recurrent
    layer gets a UserWarning. With ``undo=True`` it turns back what it had turned, and returns their
    names.

    >>> import mlx.nn as nn, elman.mlx
    >>> model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4))
    >>> elman.mlx.accelerate(model)
    ['layers.1']
    >>> elman.mlx.accelerate(model, undo=True)
    ['layers.1']
    """
    return turn_each(model.named_modules(), swap(_OURS, undo))
