"""The layers and cells of the OneFlow package: ``oneflow.nn``'s classes on Elman's engine."""

# pyright: basic, reportMissingImports=false
# (OneFlow is not typed, and is not there where types are checked)

from collections.abc import Sequence
from typing import Any

import numpy as np
import oneflow as flow
import oneflow.nn.functional as F
from oneflow import Tensor, nn
from oneflow.nn.utils import rnn
from oneflow.nn.utils.rnn import PackedSequence

from elman import stack
from elman.oneflow.operators import Layout, is_served, run_engine, run_scan
from elman.paths import Paths
from elman.spec import (
    CELLS,
    Cell,
    Weights,
    check_lengths,
    check_lengths_lie_within,
    check_reset,
    gru,
    takes,
    weight_names,
)
from elman.swap import Names, swap, turn_each

_paths = Paths("kernel", "oneflow", "scan")
paths, require = _paths.counts, _paths.require


def _cell_of(layer: Any) -> Cell:
    return CELLS[layer.mode.lower()]


def _given(cell: Cell, hx: Any) -> Sequence[Tensor] | None:
    """The states of a call: h, or h and c, or none for zeros. None if these are no tensors."""
    states: Any = () if hx is None else (hx,) if len(cell.states) == 1 else hx
    if not isinstance(states, (tuple, list)) or len(states) not in (0, len(cell.states)):
        return None
    return states if all(isinstance(t, Tensor) for t in states) else None


def _cat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    if 0 not in tensors[0].shape:
        return flow.cat(list(tensors), axis)
    # No rows: in backward of cat OneFlow would end the process.
    shape = list(tensors[0].shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    return tensors[0].new_zeros(shape) + sum(t.sum() for t in tensors)


def _join(states: Sequence[Tensor]) -> Tensor:
    """States side by side, as the engine has them."""
    return states[0] if len(states) == 1 else _cat(states, -1)


class _Layer:
    """What RNN, GRU and LSTM share, in front of OneFlow's class."""

    _stock: Any
    recompute = False

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    # An nn.Graph calls this with a stand-in for self, which super() would refuse.
    def forward(
        self: Any,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
    ) -> tuple[Any, Any]:
        """Run the layer, as ``oneflow.nn``'s does.

        Parameters
        ----------
        input : (L, N, D), (N, L, D) with batch_first, (L, D), or a PackedSequence.
        hx : (K, N, H), or (K, H) for (L, D); K = num_layers * directions. Of an LSTM (h_0, c_0),
            whose h_0 has P features with a projection. Default: zeros.
        lengths : integers (N,), 0 <= length <= L. Steps at or past a row's length are not computed:
            input there is never read, output there is 0, and h_n, and c_n, is the state after the
            row's last step, or hx if it has none. The reverse direction starts at each row's last
            step.
        reset : booleans shaped as input's time and batch axes. True at t: a new episode starts
            there, and nothing crosses from t-1 to t in either direction.

        Returns
        -------
        output : (L, N, directions*H), or as input was laid out; P in place of H with a projection.
        h_n : as hx. Of an LSTM (h_n, c_n).

        Raises
        ------
        What OneFlow's layer raises, and RuntimeError for lengths or reset of the wrong shape, type
        or value, or beside a PackedSequence. Where values are not known, as in an nn.Graph and of
        global tensors, lengths outside 0..L count as 0 or L.
        """
        extended = lengths is not None or reset is not None
        if isinstance(input, PackedSequence):
            if extended:
                name = self._get_name()
                raise RuntimeError(f"{name}: lengths= and reset= go with padded input, not packed")
            return self._run_packed(input, hx)
        path = self._path(input, hx, None, extended)
        if path == "oneflow":
            return self._stock.forward(self, input, hx)
        return self._run_padded(path, input, _given(_cell_of(self), hx) or (), lengths, reset)

    def _path(self: Any, x: Tensor, hx: Any, batch_sizes: Any, extended: bool) -> str:
        """Which path a call takes. It is counted here."""
        path, cell = "oneflow", _cell_of(self)
        batch = None if batch_sizes is None else int(batch_sizes[0])
        given = _given(cell, hx)
        states = given or ()
        # Of OneFlow's constructors all take proj_size, of its layers LSTM alone.
        valid = given is not None and not (self.proj_size and len(cell.states) == 1)
        if valid and takes(self, tuple(x.shape), [tuple(t.shape) for t in states], batch):
            weights = [getattr(self, name) for names in self._all_weights for name in names]
            if is_served(x, *states, *weights):
                path = "kernel"
            elif extended or cell.gated:
                path = "scan"
        _paths.take(path, self._get_name(), self.num_layers)
        return path

    def _run_padded(
        self: Any, path: str, input: Tensor, states: Sequence[Tensor], lengths: Any, reset: Any
    ) -> tuple[Tensor, Any]:
        extent = self._extent(input, lengths, reset)
        if path == "kernel":
            return self._run_engine(input, states, (*extent, None))
        # Of global and lazy tensors the values are not here; the engine looks for itself.
        lengths, reset = extent
        if lengths is not None and not (lengths.is_global or lengths.is_lazy):
            L = input.shape[1 if self.batch_first and input.dim() == 3 else 0]
            check_lengths_lie_within(self._get_name(), lengths.tolist(), L, RuntimeError)
        return self._run_scan(input, states, lengths, reset)

    def _run_scan(
        self: Any, input: Tensor, states: Sequence[Tensor], lengths: Any, reset: Any
    ) -> tuple[Tensor, Any]:
        batched, x, cell = input.dim() == 3, self._time_major(input), _cell_of(self)
        if not states:
            K = self.num_layers * self._directions()
            h_0 = x.new_zeros((K, x.shape[1], sum(self._sizes())))
        else:
            h_0 = _join(states) if batched else _join(states).unsqueeze(1)

        def layer(k: int, x: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
            return run_scan(cell, x, h_0, self._weights(k), lengths, reset)

        output, finals = stack.run(
            self.num_layers, self._directions(), layer, x, h_0, self._between()
        )
        h_n = finals[0] if len(finals) == 1 else _cat(finals, 0)
        if not batched:
            output, h_n = output.squeeze(1), h_n.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
        sizes = self._sizes()
        return output, h_n if len(sizes) == 1 else tuple(flow.split(h_n, list(sizes), -1))

    def _extent(self: Any, input: Tensor, lengths: Any, reset: Any) -> tuple[Any, Any]:
        """Lengths as (N,) int64 and reset as (L, N), checked."""
        name, axes = self._get_name(), tuple(input.shape[:-1])
        if lengths is not None:
            lengths = _beside(input, lengths)
            rows = () if len(axes) == 1 else axes[:1] if self.batch_first else axes[1:]
            integral = lengths.dtype in (flow.int8, flow.uint8, flow.int32, flow.int64)
            check_lengths(name, tuple(lengths.shape), integral, rows, RuntimeError)
            lengths = lengths.to(flow.int64).reshape(-1)
        if reset is not None:
            reset = _beside(input, reset)
            check_reset(name, tuple(reset.shape), reset.dtype == flow.bool, axes, RuntimeError)
            reset = self._time_major(reset.unsqueeze(-1)).squeeze(-1)
        return lengths, reset

    def _time_major(self: Any, t: Tensor) -> Tensor:
        """(L, N, features), or (L, features), laid out as input is, to (L, N, features)."""
        if t.dim() == 2:
            return t.unsqueeze(1)
        return t.transpose(0, 1) if self.batch_first else t

    def _sizes(self: Any) -> Sequence[int]:
        """The features of each state."""
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return sizes[: len(_cell_of(self).states)]

    def _run_packed(self: Any, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        x, batch_sizes, order = input.data, input.batch_sizes, input.sorted_indices
        hx = None if hx is None else self.permute_hidden(hx, order)
        path = self._path(x, hx, batch_sizes, False)
        states = _given(_cell_of(self), hx) or ()
        if path == "kernel":
            output, h_n = self._run_engine(x, states, (None, None, batch_sizes))
        elif path == "scan":
            packed, axes = PackedSequence(x, batch_sizes), self.batch_first
            padded, lengths = rnn.pad_packed_sequence(packed, axes)
            output, h_n = self._run_scan(padded, states, _beside(x, lengths), None)
            output = rnn.pack_padded_sequence(output, lengths, axes).data
        else:
            packed, h_n = self._stock.forward(self, PackedSequence(x, batch_sizes), hx)
            output = packed.data
        packed = _packed(output, batch_sizes, order)
        return packed, self.permute_hidden(h_n, packed.unsorted_indices)

    def _run_engine(
        self: Any, x: Tensor, states: Sequence[Tensor], extent: Sequence[Tensor | None]
    ) -> tuple[Tensor, Any]:
        """All layers, on x as it lies, with the extent's lengths, reset and batch_sizes."""
        cell, directions, top = _cell_of(self), self._directions(), self.num_layers - 1
        layout, axes = Layout(), tuple(x.shape[:-1])
        if extent[-1] is None and len(axes) == 1:
            layout = Layout(ahead=axes, state_ahead=(directions,), axes=(*axes, 1))
        batch_first = self.batch_first and len(axes) == 2

        def layer(k: int, x: Tensor, _: Any) -> tuple[Tensor, list[Tensor]]:
            below = [t if top == 0 else t[k * directions : (k + 1) * directions] for t in states]
            swapped = {"batch_first": k == 0, "batch_first_after": k == top} if batch_first else {}
            lie = layout._replace(**swapped)
            output, *after = run_engine(
                cell, x, below, self._weights(k), lie, extent, self.recompute
            )
            return output, after

        output, finals = stack.run(self.num_layers, directions, layer, x, None, self._between())
        each = finals[0] if top == 0 else [_cat(of, 0) for of in zip(*finals, strict=True)]
        return output, each[0] if len(each) == 1 else tuple(each)

    def _directions(self: Any) -> int:
        return 2 if self.bidirectional else 1

    def _weights(self: Any, k: int) -> list[Weights]:
        """Layer k's, of each direction."""
        names = [weight_names(k, direction) for direction in range(self._directions())]
        return [Weights(*(getattr(self, name, None) for name in each)) for each in names]

    def _between(self: Any) -> Any:
        """The dropout between layers."""
        if self.training and self.dropout > 0:
            return lambda x: F.dropout(x, self.dropout, training=True)
        return None


def _beside(x: Tensor, values: Any) -> Tensor:
    """The values as a tensor where x is; global ones have to be there already."""
    if not isinstance(values, Tensor):
        values = flow.as_tensor(values)
    return values if values.is_global else values.to(x.device)


class RNN(_Layer, nn.RNN):
    """``oneflow.nn.RNN`` on Elman's engine: the same arguments, weights, results and errors.

    ::

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)     or relu in place of tanh

    As in OneFlow, ``nonlinearity`` goes by name only: the fourth positional argument is ``bias``.
    ``recompute`` is taken as by :class:`GRU`; an RNN keeps no more than its states either way.

    >>> import oneflow, elman.oneflow
    >>> output, h_n = elman.oneflow.RNN(3, 4)(oneflow.ones(5, 2, 3), lengths=[5, 1])
    >>> output.shape, h_n.shape
    (oneflow.Size([5, 2, 4]), oneflow.Size([1, 2, 4]))
    """

    _stock = nn.RNN


class GRU(_Layer, nn.GRU):
    """``oneflow.nn.GRU`` on Elman's engine: the same arguments, weights, results and errors.

    ::

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))     or W_hn (r * h) + b_hn
        h' = (1 - z) * n + z * h

    With ``reset_after=False``, keyword only, the reset gate is applied before the recurrent
    product, the second form: a layer that OneFlow has not, whose weights look the same.

    With ``recompute=True``, keyword only, forward keeps the states alone for backward, which
    computes the gates from them once more: a fifth of the memory for up to 1.4 times the time of
    training, and the same gradients, bit for bit.

    >>> import oneflow, elman.oneflow
    >>> gru = elman.oneflow.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    >>> output, h_n = gru(oneflow.ones(2, 5, 3), lengths=[5, 1])
    >>> output.shape, h_n.shape
    (oneflow.Size([2, 5, 8]), oneflow.Size([4, 2, 4]))
    """

    _stock = nn.GRU

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        cell = gru("GRU", reset_after)
        super().__init__(*args, **kwargs)
        self.mode = cell.name.upper()

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate is applied after the recurrent product."""
        return _cell_of(self).gated is None

    def extra_repr(self) -> str:
        """The arguments that are not defaults."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


def _step(module: Any, stock: Any, name: str, input: Tensor, hx: Any) -> Any:
    """One step of a cell, as its OneFlow class `stock` does it."""
    D, H = module.input_size, module.hidden_size
    cell = CELLS.get(name, CELLS["rnn_tanh"])  # OneFlow's class refuses another one itself
    given = _given(cell, hx)
    states = given or ()
    weights = Weights(module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    axes = tuple(input.shape[:-1])
    valid = name in CELLS and given is not None and len(axes) < 2 and input.shape[-1] == D
    valid = valid and all(tuple(t.shape) == (*axes, H) for t in states)
    L_and_N = (1, axes[0] if axes else 1)
    if not (valid and is_served(input, *states, *(w for w in weights if w is not None))):
        _paths.take("scan" if valid and cell.gated else "oneflow", module._get_name())
        if valid and cell.gated:
            (h,) = states or (input.new_zeros((*axes, H)),)
            x, h_0 = input.reshape(*L_and_N, D), h.reshape(*L_and_N, H)
            return run_scan(cell, x, h_0, [weights], None, None)[1].reshape(*axes, H)
        if hx is None:
            zeros = input.new_zeros((*axes, H))
            hx = zeros if len(cell.states) == 1 else (zeros, zeros)
        result = stock.forward(module, input, hx)
        assert cell.gated is None, "OneFlow's cell took what Elman's did not"
        return result
    _paths.take("kernel", module._get_name())
    layout = Layout(ahead=axes, state_ahead=axes, axes=L_and_N, output=False)
    after = run_engine(cell, input, states, [weights], layout)
    return after[0] if len(after) == 1 else after


class LSTM(_Layer, nn.LSTM):
    """``oneflow.nn.LSTM`` on Elman's engine: the same arguments, weights, results and errors.

    ::

        i  = σ(W_ii x + b_ii + W_hi h + b_hi)
        f  = σ(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')              with proj_size, h' = W_hr (o * tanh(c'))

    The state is a pair: ``output, (h_n, c_n) = lstm(input, (h_0, c_0))``. With ``proj_size`` P, h
    and output have P features, and c has H. With ``recompute=True`` training keeps a third of the
    memory; see :class:`GRU`.

    >>> import oneflow, elman.oneflow
    >>> lstm = elman.oneflow.LSTM(3, 4, num_layers=2, proj_size=2)
    >>> output, (h_n, c_n) = lstm(oneflow.ones(5, 2, 3), lengths=[5, 1])
    >>> output.shape, h_n.shape, c_n.shape
    (oneflow.Size([5, 2, 2]), oneflow.Size([2, 2, 2]), oneflow.Size([2, 2, 4]))
    """

    _stock = nn.LSTM


class RNNCell(nn.RNNCell):
    """``oneflow.nn.RNNCell`` on Elman's engine: the same arguments, weights, results and errors.

    >>> import oneflow, elman.oneflow
    >>> elman.oneflow.RNNCell(3, 4)(oneflow.ones(2, 3)).shape
    oneflow.Size([2, 4])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input (N, D) or (D), hx (N, H) or (H), zeros by default. Returns h'."""
        return _step(self, nn.RNNCell, f"rnn_{self.nonlinearity}", input, hx)


class GRUCell(nn.GRUCell):
    """``oneflow.nn.GRUCell`` on Elman's engine: the same arguments, weights, results and errors.

    With ``reset_after=False``, keyword only, the reset gate is applied before the recurrent
    product, as in :class:`GRU`.

    >>> import oneflow, elman.oneflow
    >>> elman.oneflow.GRUCell(3, 4)(oneflow.ones(2, 3)).shape
    oneflow.Size([2, 4])
    """

    reset_after = True

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        gru("GRUCell", reset_after)
        super().__init__(*args, **kwargs)
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        """The arguments that are not defaults."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input (N, D) or (D), hx (N, H) or (H), zeros by default. Returns h'."""
        name = "gru" if self.reset_after else "gru_reset_before"
        return _step(self, nn.GRUCell, name, input, hx)


class LSTMCell(nn.LSTMCell):
    """``oneflow.nn.LSTMCell`` on Elman's engine: the same arguments, weights, results and errors.

    >>> import oneflow, elman.oneflow
    >>> h, c = elman.oneflow.LSTMCell(3, 4)(oneflow.ones(2, 3))
    >>> h.shape, c.shape
    (oneflow.Size([2, 4]), oneflow.Size([2, 4]))
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: input (N, D) or (D), hx a pair (h, c) of (N, H) or (H), zeros by default.

        Returns (h', c').
        """
        return _step(self, nn.LSTMCell, "lstm", input, hx)


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """OneFlow's function of this name, which takes rows in any order with enforce_sorted=False.

    input (L, N, ...), or (N, L, ...) with batch_first; lengths (N,), each at least 1.
    ``oneflow.nn.utils.rnn.pad_packed_sequence`` gives the rows back in the caller's order.

    >>> import oneflow
    >>> from elman.oneflow import pack_padded_sequence
    >>> packed = pack_padded_sequence(oneflow.ones(5, 2, 3), [1, 5], enforce_sorted=False)
    >>> packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
    ([2, 1, 1, 1, 1], [1, 0])
    """
    if enforce_sorted:
        return rnn.pack_padded_sequence(input, lengths, batch_first)
    lengths = flow.as_tensor(lengths, dtype=flow.int64)
    order = flow.from_numpy(np.argsort(-lengths.numpy(), kind="stable"))
    rows = input.index_select(0 if batch_first else 1, order.to(input.device))
    packed = rnn.pack_padded_sequence(rows, lengths[order], batch_first)
    return _packed(packed.data, packed.batch_sizes, order.to(input.device))


def _packed(data: Tensor, batch_sizes: Tensor, order: Tensor | None) -> PackedSequence:
    packed = PackedSequence(data, batch_sizes)  # its constructor fails on an order
    packed.sorted_indices = order
    packed.unsorted_indices = None if order is None else flow.argsort(order).to(flow.int64)
    return packed


_OURS = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}


def accelerate(model: nn.Module, undo: bool = False) -> Names:
    """Turn every stock RNN, GRU, LSTM and cell of these of a model into Elman's, in place.

    The modules stay the same objects, with their parameters, hooks and buffers; only their class
    changes, so that optimisers and other references hold. Returns the names of the modules that it
    turned, "" for the model itself; a second call finds none. Subclasses of OneFlow's classes are
    left alone: the list's attribute ``left`` has their names, each with the reason. A model without
    any recurrent layer gets a UserWarning. With ``undo=True`` it turns back what it had turned, and
    returns their names.

    >>> import oneflow, elman.oneflow
    >>> model = oneflow.nn.Sequential(oneflow.nn.Linear(3, 3), oneflow.nn.GRU(3, 4))
    >>> elman.oneflow.accelerate(model)
    ['1']
    >>> elman.oneflow.accelerate(model, undo=True)
    ['1']
    """
    return turn_each(model.named_modules(), swap(_OURS, undo))
