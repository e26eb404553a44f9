"""The NumPy package: RNN, GRU, LSTM and their cells, with PyTorch's arguments and names."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (methods of arrays of any dtype are partly untyped)

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from elman import _engine, engine, stack
from elman.engine import Array, Extent
from elman.spec import (
    CELLS,
    WEIGHTS,
    Shape,
    Spec,
    check_input,
    check_lengths,
    check_lengths_lie_within,
    check_reset,
    check_state,
    check_weights,
    each_of,
    gru,
    weight_names,
)
from elman.streams import Stream
from elman.weights.files import as_array, bfloat16, read_safetensors, write_safetensors

# What the constructor was told of a cell that is not its default.
_IN_REPR = {"rnn_relu": "nonlinearity='relu'", "gru_reset_before": "reset_after=False"}

DTypeLike = npt.DTypeLike
Vjp = Callable[[Any, Any], dict[str, Array]]
States = tuple[Array, ...]  # h, or h and c


class _Parameters:
    """Named weights of one dtype; what layers and cells share."""

    spec: Spec
    dtype: np.dtype[Any]
    state_dtype: np.dtype[Any]  # of h and c
    _shapes: dict[str, tuple[int, ...]]
    _weights: dict[str, Array]
    module: _engine.Module  # the packed weights
    _plain: Callable[..., Any]  # a call in one call, or None where it is not for the engine alone

    def _initialise(
        self, spec: Spec, shapes: dict[str, tuple[int, ...]], seed: int | None, dtype: DTypeLike
    ) -> None:
        self.spec = spec
        self.dtype = _dtype(self._title, dtype)
        self.state_dtype = engine.computed_in(self.dtype)
        self._shapes = shapes
        self._rng = np.random.default_rng(seed)
        bound = spec.bound()
        count = sum(map(math.prod, shapes.values()))
        with engine.memory_for(self._title, f"{count} weights"):
            if count > sys.maxsize // 8:  # bytes that NumPy has another error for
                raise MemoryError
            self._set({k: self._rng.uniform(-bound, bound, shape) for k, shape in shapes.items()})

    @property
    def _title(self) -> str:
        return type(self).__name__

    def _set(self, weights: Mapping[str, Array]) -> None:
        """Take copies, so that packed weights cannot fall behind the arrays they came from."""
        self._weights = {k: np.array(weights[k], self.dtype, order="C") for k in self._shapes}
        self._pack()

    def _pack(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Copies of the weights, under PyTorch's names and in its shapes."""
        return {k: w.copy() for k, w in self._weights.items()}

    def load_state_dict(self, weights: Mapping[str, Any]) -> None:
        """Take the given weights, which must have exactly this layer's names, shapes and dtype.

        Raises ValueError for a name that is missing or unexpected or a shape that is off, TypeError
        for another dtype; then nothing has changed.
        """
        if not isinstance(weights, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{self._title}: weights must be a mapping, got {type(weights)}")
        arrays = {k: _read(self._title, k, w) for k, w in weights.items()}
        check_weights(
            self._title, self._shapes, {k: a.shape for k, a in arrays.items()}, ValueError
        )
        for name, a in arrays.items():
            self._check_dtype(name, a, self.dtype)
        self._set(arrays)

    def _check_dtype(self, name: str, a: Array, expected: np.dtype[Any]) -> None:
        if a.dtype != expected:
            raise TypeError(f"{self._title}: {name} must be {expected}, got {a.dtype}")

    def array(self, name: str, values: Any) -> Array:
        """The values as an array, if of the layer's dtype; `name` stands in the error."""
        a = values if type(values) is np.ndarray else _read(self._title, name, values)
        self._check_dtype(name, a, self.dtype)
        return a

    def state(self, name: str, values: Any) -> Array:
        """The same, if of the state's dtype."""
        a = values if type(values) is np.ndarray else _read(self._title, name, values)
        self._check_dtype(name, a, self.state_dtype)
        return a

    def __repr__(self) -> str:
        spec = self.spec
        parts = [f"{spec.input_size}, {spec.hidden_size}"]
        for field in fields(spec)[3:]:  # the options, behind the cell and its two sizes
            value = getattr(spec, field.name)
            if value != field.default:
                parts.append(f"{field.name}={value}")
        parts += [text for name, text in _IN_REPR.items() if spec.cell.name == name]
        return f"{self._title}({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        packed = ("_packed", "module", "_plain")
        return {k: v for k, v in self.__dict__.items() if k not in packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pack()


class _Layer(_Parameters):
    """What all layers share: everything but the constructor, and how states are given."""

    def __init__(self, spec: Spec, seed: int | None, dtype: DTypeLike, recompute: bool) -> None:
        self.training = False
        self.recompute = recompute
        self._initialise(spec, spec.weight_shapes(), seed, dtype)

    def _pack(self) -> None:
        self._packed = [
            engine.pack(self.spec.cell, [self._weights.get(name) for name in self._names(k)])
            for k in range(self.spec.num_layers)
        ]
        spec = self.spec
        drops_out = spec.num_layers > 1 and spec.dropout > 0
        self.module = _engine.Module(self._packed, spec.batch_first, drops_out, False)
        self._plain = self.module.call

    def _names(self, layer: int) -> list[str]:
        """A layer's weights, all of each direction, absent ones too."""
        return [name for d in range(self.spec.directions) for name in weight_names(layer, d)]

    def train(self, mode: bool = True) -> "_Layer":
        """With mode True, dropout takes effect between layers. A layer begins with it off."""
        self.training = mode
        return self

    def eval(self) -> "_Layer":
        """Turn dropout off."""
        return self.train(False)

    def _run(self, x: Any, states: Any, lengths: Any, reset: Any) -> tuple[Array, States]:
        """Output and the final states, from the first ones, or None."""
        call = _Call(self, x, states, lengths, reset)

        def layer(k: int, x: Array, state: Array | None) -> tuple[Array, Array]:
            output, final, _ = engine.forward(
                self.spec.cell, self._packed[k], x, state, call.extent, engine.get_num_threads()
            )
            return output, final

        spec, dropout = self.spec, self._dropout([])
        with call.memory():
            output, finals = stack.run(
                spec.num_layers, spec.directions, layer, call.x, call.state, dropout
            )
            return call.output(output), call.states(finals)

    def _run_vjp(
        self, x: Any, states: Any, lengths: Any, reset: Any
    ) -> tuple[Array, States, Callable[[Any, Any], dict[str, Array]]]:
        """The same, and the way back from the gradients of output and of the final states."""
        spec, threads = self.spec, engine.get_num_threads()
        recorded = self.module.record(
            x, self._bare(states), threads, lengths, reset, self.training, self.recompute
        )
        if recorded is not None:
            return self._recorded(x.shape, *recorded)
        call = _Call(self, x, states, lengths, reset)
        inputs: list[Array] = []
        kept: list[engine.Kept] = []
        masks: list[Array] = []
        packed = self._packed

        def layer(k: int, x: Array, state: Array | None) -> tuple[Array, Array]:
            output, final, keep = engine.forward(
                spec.cell, packed[k], x, state, call.extent, threads, True, self.recompute
            )
            assert keep is not None
            # A copy, since the caller may fill x anew before vjp is called.
            inputs.append(np.array(x) if k == 0 else x)
            kept.append(keep)
            return output, final

        with call.memory():
            output, finals = stack.run(
                spec.num_layers, spec.directions, layer, call.x, call.state, self._dropout(masks)
            )

        def vjp(d_output: Any, d_states: Any) -> dict[str, Array]:
            gradients: dict[str, Array] = {}

            def layer(k: int, d_output: Any, d_state: Any) -> tuple[Array, Array]:
                d_x, d_first, d_weights = engine.backward(
                    packed[k],
                    [self._shapes.get(name) for name in self._names(k)],
                    inputs[k],
                    kept[k],
                    d_output,
                    d_state,
                    call.extent,
                    threads,
                )
                assert d_x is not None
                assert d_weights is not None
                pairs = zip(self._names(k), d_weights, strict=True)
                gradients.update({name: d for name, d in pairs if d is not None})
                return d_x, d_first

            with call.memory():
                d_x, firsts = stack.run_backward(
                    spec.num_layers,
                    spec.directions,
                    layer,
                    *call.gradients(d_output, d_states),
                    (lambda k, d: d * masks[k]) if masks else None,
                )
            by_name = {name: gradients[name] for name in self._shapes}
            d_firsts = zip(spec.cell.states, call.states(firsts), strict=True)
            return {"x": call.output(d_x), **{f"{name}_0": d for name, d in d_firsts}, **by_name}

        return call.output(output), call.states(finals), vjp

    def _bare(self, states: Any) -> Any:
        """States as the engine's single calls have them: h alone is no tuple."""
        return states if states is None or len(self.spec.cell.states) > 1 else states[0]

    def _recorded(
        self, x_shape: Shape, output: Array, final: Any, tape: _engine.Tape
    ) -> tuple[Array, States, Callable[[Any, Any], dict[str, Array]]]:
        """What :meth:`_run_vjp` gives, where the engine did all layers in one call."""
        finals: States = final if isinstance(final, tuple) else (final,)
        names = ["x", *(f"{name}_0" for name in self.spec.cell.states), *self._shapes]
        shape, shapes = output.shape, [a.shape for a in finals]

        def vjp(d_output: Any, d_states: Any) -> dict[str, Array]:
            with engine.memory_for(self.spec.title, f"a call with x of shape {x_shape}"):
                gradients = tape.backward(d_output, self._bare(d_states))
                if gradients is None:
                    d_output, d_states = self.gradients(d_output, shape, d_states, shapes)
                    gradients = tape.backward(d_output, self._bare(d_states))
            return dict(zip(names, gradients, strict=True))

        return output, finals, vjp

    def gradients(
        self, d_output: Any, shape: Shape, d_states: Any, shapes: Sequence[Shape]
    ) -> tuple[Array | None, States | None]:
        """The caller's gradients of output and of the final states as arrays of these shapes.

        Absent ones are None; where one of the states' is there, all are.
        """
        title, names = self.spec.title, [f"d_{name}_n" for name in self.spec.cell.states]
        if d_output is not None:
            d_output = self._gradient("d_output", self.array("d_output", d_output), shape)
        given = [None] * len(names) if d_states is None else each_of(title, names, d_states)
        if all(d is None for d in given):
            return d_output, None
        return d_output, tuple(
            np.zeros(shape, self.state_dtype)
            if d is None
            else self._gradient(name, self.state(name, d), shape)
            for name, d, shape in zip(names, given, shapes, strict=True)
        )

    def _gradient(self, name: str, d: Array, shape: Shape) -> Array:
        if d.shape != shape:
            raise ValueError(f"{self.spec.title}: {name} must have shape {shape}, got {d.shape}")
        return np.require(d, requirements=["C", "A"])

    def _dropout(self, masks: list[Array]) -> Callable[[Array], Array] | None:
        """Dropout between layers, which notes its masks, or None where there is none."""
        p = self.spec.dropout
        if not self.training or p == 0:
            return None

        def dropout(x: Array) -> Array:
            kept = self._rng.random(x.shape) >= p
            masks.append((kept / (1 - p) if p < 1 else np.zeros(x.shape)).astype(x.dtype))
            return x * masks[-1]

        return dropout

    def stream(self, rows: int = 1) -> Stream:
        """A stream of steps through the layer, of so many rows, from zeros: see :class:`Stream`.

        >>> import elman, numpy as np
        >>> stream = elman.GRU(4, 8, seed=0).stream()
        >>> for x_t in np.ones((3, 4), "float32"):
        ...     h = stream.step(x_t)
        >>> h.shape
        (8,)

        Raises ValueError for a bidirectional layer, which would have to begin at the end.
        """
        frozen = object.__new__(type(self))  # load_state_dict gives the layer others, not this
        frozen.__dict__ = {**self.__dict__, "training": False}
        return Stream(frozen, rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to a safetensors file, which appears whole or not at all.

        The weights stand under PyTorch's names; the constructor's arguments are in the file's
        metadata, from which :func:`load` builds the layer. Needs the package safetensors.
        """
        spec = self.spec
        options = {f.name: getattr(spec, f.name) for f in fields(spec)[1:]}
        description = {"cell": spec.cell.name, **options, "dtype": self.dtype.name}
        write_safetensors(path, self._weights, {"elman": json.dumps(description)})


class _OneState(_Layer):
    """What RNN and GRU share: a call with h alone."""

    def __call__(
        self, x: Any, h_0: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, Array]:
        """Run the layer.

        Parameters
        ----------
        x : (L, N, D), (N, L, D) with batch_first, or (L, D) without a batch; of the layer's dtype.
        h_0 : (K, N, H), or (K, H) without a batch; K = num_layers * directions. Default: zeros.
        lengths : integers (N,), 0 <= length <= L. Steps at or past a row's length are not computed:
            x there is never read, output there is 0, and h_n is the state after the row's last
            step, or h_0 if it has none. The reverse direction starts at each row's last step.
        reset : booleans shaped as x's time and batch axes. True at t: a new episode starts there,
            and nothing crosses from t-1 to t in either direction.

        Returns
        -------
        output : (L, N, directions*H), or as x was laid out: the last layer's state at every step.
        h_n : (K, N, H), or (K, H): the final states; layer k's direction d is at k*directions + d.

        Raises
        ------
        ValueError : a shape that is off, lengths outside 0..L.
        TypeError : another dtype.
        """
        plain = self._plain(x, h_0, engine.get_num_threads(), lengths, reset, self.training)
        if plain is not None:
            return plain
        output, (h_n,) = self._run(x, None if h_0 is None else (h_0,), lengths, reset)
        return output, h_n

    def vjp(
        self, x: Any, h_0: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, Array, Vjp]:
        """Run the layer and give the function that takes gradients back through it.

        Returns output, h_n and ``vjp``. ``vjp(d_output, d_h_n)`` returns the gradients of
        ``sum(output * d_output) + sum(h_n * d_h_n)`` as a dictionary: "x", "h_0" and every weight
        by its name. Either argument may be None for zeros. It may be called more than once.

        >>> import elman, numpy as np
        >>> rnn = elman.RNN(1, 1, bias=False, dtype="float64")
        >>> one, none = np.ones((1, 1)), np.zeros((1, 1))
        >>> rnn.load_state_dict({"weight_ih_l0": one, "weight_hh_l0": none})
        >>> output, h_n, vjp = rnn.vjp(np.zeros((3, 1)))
        >>> vjp(np.ones((3, 1)), None)["x"].tolist()
        [[1.0], [1.0], [1.0]]
        """
        states = None if h_0 is None else (h_0,)
        output, (h_n,), vjp = self._run_vjp(x, states, lengths, reset)
        return output, h_n, lambda d_output, d_h_n: vjp(d_output, (d_h_n,))


class RNN(_OneState):
    """Elman RNN, one or more layers, one or two directions.

    ::

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)     or relu in place of tanh

    Parameters
    ----------
    input_size : D, features of x.
    hidden_size : H, hidden units.
    num_layers : layers; each above the first reads the output of the one below. Default: 1.
    nonlinearity : "tanh" or "relu". Default: "tanh".
    bias : with b_ih and b_hh. Default: True.
    batch_first : x and output are (N, L, D) instead of (L, N, D). Default: False.
    dropout : probability that a value between layers is zeroed, in training. Default: 0.
    bidirectional : also run from the end to the start. Default: False.
    seed : of the initial weights, uniform in [-1/sqrt(H), 1/sqrt(H)]. Default: a new one each time.
    dtype : "float32", "float64", "float16" or "bfloat16" (which needs the package ml_dtypes).
        Default: "float32". In half precision the weights, x and output are of that type; the state,
        h_0 and h_n too, and all arithmetic are float32.
    recompute : changes nothing for an RNN, which keeps its states alone for vjp. Default: False.

    Weights are ``weight_ih_l{k}`` (H, D), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` (H), with the suffix ``_reverse`` for the second direction.

    >>> import elman, numpy as np
    >>> output, h_n = elman.RNN(4, 8, nonlinearity="relu")(np.ones((6, 2, 4), "float32"))
    >>> output.shape, h_n.shape
    ((6, 2, 8), (1, 2, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        seed: int | None = None,
        dtype: DTypeLike = "float32",
        recompute: bool = False,
    ) -> None:
        cell = CELLS[_rnn_cell("RNN", nonlinearity)]
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(Spec(cell, input_size, hidden_size, *options), seed, dtype, recompute)


class GRU(_OneState):
    """Gated recurrent unit, one or more layers, one or two directions.

    ::

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))     or W_hn (r * h) + b_hn
        h' = (1 - z) * n + z * h

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014, with the
    reset gate after the recurrent product, as PyTorch, cuDNN, MLX and OneFlow compute it; or with
    ``reset_after=False`` before it, as in that paper, ONNX's default and Keras's
    ``reset_after=False``.

    Parameters
    ----------
    input_size : D, features of x.
    hidden_size : H, hidden units.
    num_layers : layers; each above the first reads the output of the one below. Default: 1.
    bias : with b_ih and b_hh. Default: True.
    batch_first : x and output are (N, L, D) instead of (L, N, D). Default: False.
    dropout : probability that a value between layers is zeroed, in training. Default: 0.
    bidirectional : also run from the end to the start. Default: False.
    reset_after : whether the reset gate is applied after the recurrent product. Default: True.
    seed : of the initial weights, uniform in [-1/sqrt(H), 1/sqrt(H)]. Default: a new one each time.
    dtype : "float32", "float64", "float16" or "bfloat16" (which needs the package ml_dtypes).
        Default: "float32". In half precision the weights, x and output are of that type; the state,
        h_0 and h_n too, and all arithmetic are float32.
    recompute : keep for vjp the states alone, and compute the gates from them once more: a fifth of
        the memory for up to 1.4 times the time, and the same gradients, bit for bit.
        Default: False.

    Weights are ``weight_ih_l{k}`` (3H, D), ``weight_hh_l{k}`` (3H, H), ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` (3H), rows in the order r, z, n, with the suffix ``_reverse`` for the second
    direction.

    >>> import elman, numpy as np
    >>> gru = elman.GRU(4, 8, bidirectional=True, seed=0)
    >>> x = np.full((6, 2, 4), 0.5, "float32")
    >>> x[2:, 1] = np.nan  # past the end of the second row, never read
    >>> output, h_n = gru(x, lengths=[6, 2])
    >>> output.shape, h_n.shape, bool(np.isfinite(output).all())
    ((6, 2, 16), (2, 2, 8), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        seed: int | None = None,
        dtype: DTypeLike = "float32",
        recompute: bool = False,
    ) -> None:
        cell = gru("GRU", reset_after)
        options = (num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(Spec(cell, input_size, hidden_size, *options), seed, dtype, recompute)


class LSTM(_Layer):
    """Long short-term memory, one or more layers, one or two directions.

    ::

        i  = σ(W_ii x + b_ii + W_hi h + b_hi)
        f  = σ(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c'), or with a projection W_hr (o * tanh(c'))

    Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997), with the
    forget gate of Gers, Schmidhuber and Cummins (2000) and the projection of Sak, Senior and
    Beaufays (2014), as PyTorch and cuDNN compute it.

    Parameters
    ----------
    input_size : D, features of x.
    hidden_size : H, hidden units.
    num_layers : layers; each above the first reads the output of the one below. Default: 1.
    bias : with b_ih and b_hh. Default: True.
    batch_first : x and output are (N, L, D) instead of (L, N, D). Default: False.
    dropout : probability that a value between layers is zeroed, in training. Default: 0.
    bidirectional : also run from the end to the start. Default: False.
    proj_size : the features P of h and output, where a projection makes them of the H units;
        0 <= proj_size < H. Default: 0, no projection, and P = H.
    seed : of the initial weights, uniform in [-1/sqrt(H), 1/sqrt(H)]. Default: a new one each time.
    dtype : "float32", "float64", "float16" or "bfloat16" (which needs the package ml_dtypes).
        Default: "float32". In half precision the weights, x and output are of that type; the states
        h and c, and all arithmetic, are float32.
    recompute : keep for vjp the states alone, and compute the gates from them once more: a third of
        the memory for up to 1.4 times the time, and the same gradients, bit for bit.
        Default: False.

    Weights are ``weight_ih_l{k}`` (4H, D), ``weight_hh_l{k}`` (4H, P), ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` (4H), rows in the order i, f, g, o, and with a projection ``weight_hr_l{k}``
    (P, H); with the suffix ``_reverse`` for the second direction.

    >>> import elman, numpy as np
    >>> lstm = elman.LSTM(4, 8, num_layers=2, seed=0)
    >>> output, (h_n, c_n) = lstm(np.ones((6, 2, 4), "float32"), lengths=[6, 2])
    >>> output.shape, h_n.shape, c_n.shape
    ((6, 2, 8), (2, 2, 8), (2, 2, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        seed: int | None = None,
        dtype: DTypeLike = "float32",
        recompute: bool = False,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        spec = Spec(CELLS["lstm"], input_size, hidden_size, *options)
        super().__init__(spec, seed, dtype, recompute)

    def __call__(
        self, x: Any, states: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Run the layer.

        Parameters
        ----------
        x : (L, N, D), (N, L, D) with batch_first, or (L, D) without a batch; of the layer's dtype.
        states : (h_0, c_0), h_0 (K, N, P) and c_0 (K, N, H), or (K, P) and (K, H) without a batch;
            K = num_layers * directions. Default: zeros.
        lengths : integers (N,), 0 <= length <= L. Steps at or past a row's length are not computed:
            x there is never read, output there is 0, and h_n and c_n are the states after the row's
            last step, or h_0 and c_0 if it has none. The reverse direction starts at each row's
            last step.
        reset : booleans shaped as x's time and batch axes. True at t: a new episode starts there,
            and nothing crosses from t-1 to t in either direction.

        Returns
        -------
        output : (L, N, directions*P), or as x was laid out: the last layer's h at every step.
        (h_n, c_n) : the final states, shaped as h_0 and c_0; layer k's direction d is at
            k*directions + d.

        Raises
        ------
        ValueError : a shape that is off, lengths outside 0..L.
        TypeError : another dtype, or states that are no pair.
        """
        plain = self._plain(x, states, engine.get_num_threads(), lengths, reset, self.training)
        if plain is not None:
            return plain
        output, (h_n, c_n) = self._run(x, states, lengths, reset)
        return output, (h_n, c_n)

    def vjp(
        self, x: Any, states: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, tuple[Array, Array], Vjp]:
        """Run the layer and give the function that takes gradients back through it.

        Returns output, (h_n, c_n) and ``vjp``. ``vjp(d_output, (d_h_n, d_c_n))`` returns the
        gradients of ``sum(output * d_output) + sum(h_n * d_h_n) + sum(c_n * d_c_n)`` as a
        dictionary: "x", "h_0", "c_0" and every weight by its name. Any of the three, and the pair,
        may be None for zeros. It may be called more than once.

        >>> import elman, numpy as np
        >>> lstm = elman.LSTM(4, 8)
        >>> output, (h_n, c_n), vjp = lstm.vjp(np.ones((6, 2, 4), "float32"))
        >>> list(vjp(np.ones_like(output), (None, c_n)))[:4]
        ['x', 'h_0', 'c_0', 'weight_ih_l0']
        """
        output, (h_n, c_n), vjp = self._run_vjp(x, states, lengths, reset)
        return output, (h_n, c_n), vjp


class _CellLayer(_Parameters):
    """What the cells share: everything but the constructor, and how states are given."""

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, bias: bool, seed: Any, dtype: DTypeLike
    ) -> None:
        spec = Spec(CELLS[cell], input_size, hidden_size, bias=bias)
        self._initialise(spec, spec.cell_weight_shapes(), seed, dtype)

    def _pack(self) -> None:
        self._packed = engine.pack(self.spec.cell, [self._weights.get(name) for name in WEIGHTS])
        self.module = _engine.Module([self._packed], False, False, True)
        self._plain = self.module.call

    def _step(self, x: Any, states: Any) -> States:
        """One step from the states, or None: what they are after it."""
        x = self.array("x", x)
        D, cell = self.spec.input_size, self.spec.cell
        if x.ndim not in (1, 2) or x.shape[-1] != D:
            raise ValueError(f"{self._title}: x must be (N, D) or (D) with D = {D}, got {x.shape}")
        shape = (*x.shape[:-1], self.spec.hidden_size)
        state = None
        if states is not None:
            arrays = [
                self._checked(name, a, shape)
                for name, a in zip(
                    cell.states, each_of(self._title, cell.states, states), strict=True
                )
            ]
            state = _join(arrays).reshape(1, -1, len(arrays) * shape[-1])
        with engine.memory_for(self._title, f"a call with x of shape {x.shape}"):
            _, final, _ = engine.forward(
                cell, self._packed, x.reshape(1, -1, D), state, Extent(), engine.get_num_threads()
            )
        return tuple(a.reshape(shape) for a in _split(self.spec, final))

    def _checked(self, name: str, a: Any, shape: tuple[int, ...]) -> Array:
        a = self.state(name, a)
        if a.shape != shape:
            raise ValueError(f"{self._title}: {name} must have shape {shape}, got {a.shape}")
        return a


class _OneStateCell(_CellLayer):
    """What RNNCell and GRUCell share: a call with h alone."""

    def __call__(self, x: Any, h: Any = None) -> Array:
        """One step: x (N, D) or (D), h (N, H) or (H), zeros by default. Returns h', shaped as h.

        Raises ValueError for a shape that is off, TypeError for another dtype.
        """
        plain = self._plain(x, h, engine.get_num_threads())
        if plain is not None:
            return plain
        (after,) = self._step(x, None if h is None else (h,))
        return after


class RNNCell(_OneStateCell):
    """One step of an Elman RNN: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with relu.

    Weights are ``weight_ih`` (H, D), ``weight_hh`` (H, H), ``bias_ih`` and ``bias_hh`` (H); the
    arguments are those of :class:`RNN`.

    >>> import elman, numpy as np
    >>> elman.RNNCell(4, 8)(np.ones((2, 4), "float32")).shape
    (2, 8)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        seed: int | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        cell = _rnn_cell("RNNCell", nonlinearity)
        super().__init__(cell, input_size, hidden_size, bias, seed, dtype)


class GRUCell(_OneStateCell):
    """One step of a GRU; the equations are those of :class:`GRU`.

    Weights are ``weight_ih`` (3H, D), ``weight_hh`` (3H, H), ``bias_ih`` and ``bias_hh`` (3H), rows
    in the order r, z, n; the arguments are those of :class:`GRU`.

    >>> import elman, numpy as np
    >>> cell, h = elman.GRUCell(4, 8), np.zeros(8, "float32")
    >>> for x_t in np.ones((3, 4), "float32"):
    ...     h = cell(x_t, h)
    >>> h.shape
    (8,)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        seed: int | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        cell = gru("GRUCell", reset_after).name
        super().__init__(cell, input_size, hidden_size, bias, seed, dtype)


class LSTMCell(_CellLayer):
    """One step of an LSTM; the equations are those of :class:`LSTM`, without a projection.

    Weights are ``weight_ih`` (4H, D), ``weight_hh`` (4H, H), ``bias_ih`` and ``bias_hh`` (4H), rows
    in the order i, f, g, o; the arguments are those of :class:`LSTM`.

    >>> import elman, numpy as np
    >>> cell, states = elman.LSTMCell(4, 8), None
    >>> for x_t in np.ones((3, 4), "float32"):
    ...     states = cell(x_t, states)
    >>> h, c = states
    >>> h.shape, c.shape
    ((8,), (8,))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        seed: int | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, seed, dtype)

    def __call__(self, x: Any, states: Any = None) -> tuple[Array, Array]:
        """One step: x (N, D) or (D), states (h, c), each (N, H) or (H), zeros by default.

        Returns (h', c'). Raises ValueError for a shape that is off, TypeError for another dtype, or
        states that are no pair.
        """
        plain = self._plain(x, states, engine.get_num_threads())
        if plain is not None:
            return plain
        h, c = self._step(x, states)
        return h, c


def load(path: str | os.PathLike[str]) -> RNN | GRU | LSTM:
    """Build the layer that :meth:`GRU.save` wrote, or that of another layer.

    Raises ValueError where the file is no safetensors file, or not one of Elman's. Nothing is
    unpickled. Needs the package safetensors.
    """
    weights, metadata = read_safetensors("load", path)
    try:
        options = json.loads(metadata["elman"])
        cell, dtype = CELLS[options.pop("cell")], options.pop("dtype")
        spec = Spec(cell, **options)
        # Before memory is taken for what the file says of itself.
        expected = spec.weight_shapes() if spec.num_layers <= len(weights) else {}
        check_weights("load", expected, {k: w.shape for k, w in weights.items()}, ValueError)
        layer = _build(spec, dtype)
        layer.load_state_dict(weights)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
        raise ValueError(
            f"load: {os.fspath(path)!r} does not describe an Elman layer: {e!r}"
        ) from e
    return layer


def _build(spec: Spec, dtype: DTypeLike) -> RNN | GRU | LSTM:
    """The layer that a constructor would have made of these options."""
    layer = {cls.__name__: cls for cls in (RNN, GRU, LSTM)}[spec.cell.kind]
    built = layer.__new__(layer)
    _Layer.__init__(built, spec, None, dtype, recompute=False)
    return built


class _Call:
    """The checked arguments of one call, laid out as the engine takes them, and the way back."""

    def __init__(self, layer: _Layer, x: Any, states: Any, lengths: Any, reset: Any) -> None:
        spec, title = layer.spec, layer.spec.title
        self._layer = layer
        x = layer.array("x", x)
        check_input(spec, x.shape, ValueError)
        self._batched = x.ndim == 3
        self._transposed = self._batched and spec.batch_first
        self.x = self._time_major(x)
        self._batch = batch = self.x.shape[1:2] if self._batched else ()
        self.state = None
        if states is not None:
            names = [f"{name}_0" for name in spec.cell.states]
            arrays = list(map(layer.state, names, each_of(title, names, states)))
            for name, a in zip(spec.cell.states, arrays, strict=True):
                check_state(spec, name, a.shape, batch, ValueError)
            self.state = self._add_batch(_join(arrays))
        if lengths is not None:
            lengths = _read(title, "lengths", lengths)
            dtype = lengths.dtype
            check_lengths(title, lengths.shape, dtype.kind in "iu", batch, ValueError, dtype)
            if dtype == np.uint64:  # of which int64 does not have all
                within = lengths.reshape(-1).tolist()
                check_lengths_lie_within(title, within, len(self.x), ValueError)
            lengths = np.array(lengths.reshape(-1), np.int64)
        if reset is not None:
            reset = _read(title, "reset", reset)
            check_reset(
                title, reset.shape, reset.dtype == bool, x.shape[:-1], ValueError, reset.dtype
            )
            reset = self._time_major(reset.copy())
        self.extent = Extent(lengths, reset)

    def memory(self) -> AbstractContextManager[None]:
        """For what the call takes: where there is not enough, an error that says so."""
        shape = self.output(self.x).shape
        return engine.memory_for(self._layer.spec.title, f"a call with x of shape {shape}")

    def _time_major(self, a: Array) -> Array:
        if not self._batched:
            return a[:, None]
        return a.swapaxes(0, 1) if self._transposed else a

    def _add_batch(self, a: Array) -> Array:
        return a if self._batched else a[:, None]

    def output(self, a: Array) -> Array:
        """(L, N, features) as the caller lays it out."""
        if not self._batched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self._transposed else a

    def states(self, layers: list[Array]) -> States:
        """Each layer's (directions, N, S) as (K, N, features) or (K, features) for each state."""
        state = layers[0] if len(layers) == 1 else np.concatenate(layers)
        parts = _split(self._layer.spec, state)
        return tuple(a.reshape(self._state_shape(a.shape[-1])) for a in parts)

    def _state_shape(self, size: int) -> tuple[int, ...]:
        spec = self._layer.spec
        return (spec.num_layers * spec.directions, *self._batch, size)

    def gradients(self, d_output: Any, d_states: Any) -> tuple[Array | None, Array | None]:
        """The caller's gradients of output and of the final states, as the engine takes them."""
        spec = self._layer.spec
        features = spec.directions * spec.output_size
        shape = (*self.output(self.x).shape[:-1], features)
        shapes = [self._state_shape(size) for size in spec.state_sizes.values()]
        d, d_finals = self._layer.gradients(d_output, shape, d_states, shapes)
        return (
            None if d is None else self._time_major(d),
            None if d_finals is None else self._add_batch(_join(d_finals)),
        )


def _join(states: Sequence[Array]) -> Array:
    """States side by side, as the engine has them."""
    return states[0] if len(states) == 1 else np.concatenate(states, -1)


def _split(spec: Spec, state: Array) -> Sequence[Array]:
    """The states, each in memory of its own."""
    if len(spec.cell.states) == 1:
        return [state]
    P = spec.output_size
    return [np.ascontiguousarray(a) for a in (state[..., :P], state[..., P:])]


def _dtype(title: str, dtype: DTypeLike) -> np.dtype[Any]:
    if dtype == "bfloat16":
        return bfloat16(title)
    known: Any = dtype
    if dtype is not None:  # for NumPy that is float64  # pyright: ignore[reportUnnecessaryComparison]
        with suppress(TypeError):
            known = np.dtype(dtype)
            if known.isnative and known.name in ("float16", "bfloat16", "float32", "float64"):
                return known
    expected = "float16, bfloat16, float32 or float64"
    raise TypeError(f"{title}: dtype must be {expected}, got {known}")


def _read(title: str, name: str, values: Any) -> Array:
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(
            f"{title}: {name} is a masked array, and its mask would be lost: "
            f"say by lengths where rows end, or give {name}.filled()"
        )
    try:
        return as_array(title, values)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"{title}: {name} is nothing that NumPy reads: {e}") from e


def _rnn_cell(title: str, nonlinearity: str) -> str:
    if not (isinstance(nonlinearity, str) and nonlinearity in ("tanh", "relu")):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{title}: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return f"rnn_{nonlinearity}"
