"""Streams: a layer that is run as its input comes, step by step or block by block."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (methods of arrays of any dtype are partly untyped)

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from elman import _engine, engine
from elman.engine import Array
from elman.spec import Shape, check_input, each_of


class Stream:
    """Steps of an RNN, a GRU or an LSTM of one direction, one after another.

    A stream holds the state of its rows, each a sequence of its own that begins with zeros. A step
    is that of the layer's cells, layer above layer::

        h_t = cell(x_t, h_{t-1})     and c_t with it, for an LSTM

    and has the same bits as within a whole sequence. :meth:`step` takes no memory where it is told
    what to write to, unless the layer is so large that several threads share a step: from some
    millions of weights, of all rows together.

    Made by ``layer.stream(rows)``, from the layer's weights at that time: `load_state_dict` gives
    the layer others afterwards, and leaves its streams as they are. Dropout takes no effect.

    A stream serves one thread at a time. Many of one layer, each in a thread of its own, do not
    touch one another; large steps share the threads of :func:`set_num_threads`, as many as were set
    when the stream was made.

    In half precision `state` is float32, and a step is a call of the layer, memory and all.

    >>> import elman, numpy as np
    >>> layer = elman.LSTM(4, 8, num_layers=2, seed=0)
    >>> stream, x = layer.stream(rows=3), np.ones((10, 3, 4), "float32")
    >>> out = np.empty((3, 8), "float32")
    >>> for x_t in x[:5]:
    ...     _ = stream.step(x_t, out)
    >>> rest = stream.run(x[5:])
    >>> whole, (h_n, c_n) = layer(x)
    >>> np.array_equal(out, whole[4]), np.array_equal(rest, whole[5:])
    (True, True)
    >>> h, c = stream.state
    >>> np.array_equal(h, h_n), np.array_equal(c, c_n)
    (True, True)
    """

    def __init__(self, layer: Any, rows: int) -> None:
        spec = layer.spec
        if isinstance(rows, bool) or not isinstance(rows, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{spec}: rows must be an int, got {rows!r}")
        if not 1 <= rows < 2**31:
            raise ValueError(f"{spec}: rows must lie between 1 and 2**31 - 1, got {rows}")
        if spec.bidirectional:
            raise ValueError(f"{spec}: a stream has one direction, got bidirectional=True")
        self._layer, self._spec, self._rows = layer, spec, rows
        with engine.memory_for(spec.title, f"a stream of {rows} rows"):
            self._stream = _engine.Stream(layer.module, rows, engine.get_num_threads())
        self._step = self._stream.step

    def step(self, x: Any, out: Array | None = None) -> Array:
        """Take one step.

        Parameters
        ----------
        x : (rows, D), or of one row (D); of the layer's dtype.
        out : what output is written to, and returned. Default: a new array.

        Returns
        -------
        output : (rows, P), or (P) for x of (D): the last layer's h.

        Raises ValueError for a shape that is off, TypeError for another dtype; then no step is
        taken.
        """
        output = self._step(x, out)
        return self._step_of_any(x, out) if output is None else output

    def _step_of_any(self, values: Any, out: Any) -> Array:
        """The same, wherever x and out lie, and in half precision."""
        spec = self._spec
        x: Array = self._layer.array("x", values)
        rows = () if x.ndim == 1 and self._rows == 1 else (self._rows,)
        self._check_shape("x", x, (*rows, spec.input_size))
        if out is not None:
            self._check_out(out, (*rows, spec.output_size))
        time = 1 if spec.batch_first and rows else 0
        output = self.run(np.expand_dims(x, time)).squeeze(time)
        if out is None:
            return output
        out[...] = output
        return out

    def run(self, x: Any) -> Array:
        """Run a block of steps: the layer's output, from the stream's state.

        x is (L, rows, D), or (rows, L, D) with batch_first, or of one row (L, D). Raises ValueError
        for a shape that is off, TypeError for another dtype; then no step is taken.

        >>> import elman, numpy as np
        >>> stream = elman.GRU(1, 24, seed=0).stream()
        >>> [stream.run(block).shape for block in np.zeros((3, 160, 1), "float32")]
        [(160, 24), (160, 24), (160, 24)]
        """
        spec = self._spec
        x = self._layer.array("x", x)
        check_input(spec, x.shape, ValueError)
        rows = 1 if x.ndim == 2 else x.shape[0 if spec.batch_first else 1]
        if rows != self._rows:
            raise ValueError(f"{spec}: x must have {self._rows} rows, got {x.shape}")
        first = [a if x.ndim == 3 else a[:, 0] for a in self._states()]
        output, last = self._layer(x, first[0] if len(first) == 1 else tuple(first))
        self._take((last,) if len(first) == 1 else last)
        return output

    def reset(self, rows: Any = None) -> None:
        """Begin with zeros again: all rows, one, those of an array of integers, or of a mask.

        >>> import elman, numpy as np
        >>> stream = elman.GRU(4, 8, seed=0).stream(rows=3)
        >>> _ = stream.step(np.ones((3, 4), "float32"))
        >>> stream.reset(np.array([True, False, True]))
        >>> stream.state.any(axis=(0, 2))
        array([False,  True, False])
        """
        chosen = slice(None) if rows is None else self._checked_rows(rows)
        self._stream.states[:, chosen] = 0

    @property
    def state(self) -> Any:
        """A copy of h (K, rows, P), of an LSTM of (h, c), c (K, rows, H); as layers give h_n.

        What is set must have that shape, and the dtype of the layer's h_0.
        """
        states: list[Array] = [a.copy() for a in self._states()]
        return states[0] if len(states) == 1 else tuple(states)

    @state.setter
    def state(self, values: Any) -> None:
        layer, names = self._layer, self._spec.cell.states
        given = each_of(self._spec.title, names, (values,) if len(names) == 1 else values)
        arrays: list[Array] = [layer.state(name, a) for name, a in zip(names, given, strict=True)]
        for name, a, part in zip(names, arrays, self._states(), strict=True):
            self._check_shape(name, a, part.shape)
        self._take(arrays)

    def _states(self) -> list[Array]:
        """Those that the stream has now, in its own memory."""
        states: Array = self._stream.states
        P = self._spec.output_size
        return [states[..., :P], states[..., P:]][: len(self._spec.cell.states)]

    def _take(self, arrays: Sequence[Array]) -> None:
        for part, a in zip(self._states(), arrays, strict=True):
            part[...] = a.reshape(part.shape)

    def _check_shape(self, name: str, a: Array, expected: Shape) -> None:
        if a.shape != expected:
            raise ValueError(f"{self._spec}: {name} must have shape {expected}, got {a.shape}")

    def _check_out(self, out: Any, expected: Shape) -> None:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"{self._spec}: out must be an array, got {type(out)}")
        if out.dtype != self._layer.dtype:
            raise TypeError(f"{self._spec}: out must be {self._layer.dtype}, got {out.dtype}")
        self._check_shape("out", cast(Array, out), expected)
        if not out.flags.writeable:
            raise ValueError(f"{self._spec}: out is read-only")

    def _checked_rows(self, rows: Any) -> Array:
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (self._rows,):
                expected = f"of shape {(self._rows,)}, got {chosen.shape}"
                raise ValueError(f"{self._spec}: a mask of rows must be {expected}")
        elif chosen.dtype.kind not in "iu":
            raise TypeError(
                f"{self._spec}: rows must be integers or a mask of booleans, got {chosen.dtype}"
            )
        elif chosen.size and not 0 <= chosen.min() <= chosen.max() < self._rows:
            raise ValueError(
                f"{self._spec}: rows must lie between 0 and {self._rows - 1}, got {rows}"
            )
        return chosen
