"""The layers and cells of the OneFlow package: ``oneflow.nn``'s classes on Elman's engine."""

# pyright: basic, reportMissingImports=false
# (OneFlow is not typed, and is not there where types are checked)

from functools import partial
from typing import Any

import numpy as np
import oneflow as flow
import oneflow.nn.functional as F
from oneflow import Tensor, nn
from oneflow.nn.utils import rnn
from oneflow.nn.utils.rnn import PackedSequence

from elman import stack
from elman.oneflow.operators import is_served, run_engine, run_scan
from elman.paths import Paths
from elman.spec import CELLS, Weights, check_lengths, check_lengths_lie_within, check_reset, takes
from elman.swap import swap

_paths = Paths("kernel", "oneflow", "scan")
paths, require = _paths.counts, _paths.require


class _Layer:
    """What RNN and GRU share, in front of OneFlow's class."""

    _stock: Any
    recompute = False

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    # An nn.Graph calls this with a stand-in for self, which super() would refuse.
    def forward(
        self: Any,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
    ) -> tuple[Any, Tensor]:
        """Run the layer, as ``oneflow.nn``'s does.

        Parameters
        ----------
        input : (L, N, D), (N, L, D) with batch_first, (L, D), or a PackedSequence.
        hx : (K, N, H), or (K, H) for (L, D); K = num_layers * directions. Default: zeros.
        lengths : integers (N,), 0 <= length <= L. Steps at or past a row's length are not computed:
            input there is never read, output there is 0, and h_n is the state after the row's last
            step, or hx if it has none. The reverse direction starts at each row's last step.
        reset : booleans shaped as input's time and batch axes. True at t: a new episode starts
            there, and nothing crosses from t-1 to t in either direction.

        Returns
        -------
        output : (L, N, directions*H), or as input was laid out.
        h_n : (K, N, H), or (K, H).

        Raises
        ------
        What OneFlow's layer raises, and RuntimeError for lengths or reset of the wrong shape, type
        or value, or beside a PackedSequence.
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
        return self._run_padded(path, input, hx, lengths, reset)

    def _path(self: Any, x: Tensor, hx: Any, batch_sizes: Any, extended: bool) -> str:
        """Which path a call takes. It is counted here."""
        path = "oneflow"
        batch = None if batch_sizes is None else int(batch_sizes[0])
        if takes(self, tuple(x.shape), None if hx is None else tuple(hx.shape), batch):
            weights = [getattr(self, name) for names in self._all_weights for name in names]
            if is_served(x, x if hx is None else hx, *weights):
                path = "kernel"
            elif extended:
                path = "scan"
        _paths.take(path, self._get_name(), self.num_layers)
        return path

    def _run_padded(
        self: Any, path: str, input: Tensor, hx: Tensor | None, lengths: Any, reset: Any
    ) -> tuple[Tensor, Tensor]:
        batched, x = input.dim() == 3, self._time_major(input)
        h_0 = self._zeros(x, x.shape[1]) if hx is None else hx if batched else hx.unsqueeze(1)
        lengths, reset = self._extent(input, lengths, reset)
        # Of global and lazy tensors the values are not here; the engine looks for itself.
        if path == "scan" and lengths is not None and not (lengths.is_global or lengths.is_lazy):
            check_lengths_lie_within(self._get_name(), lengths.tolist(), x.shape[0], RuntimeError)
        output, h_n = self._run(path, x, h_0, lengths, reset)
        if not batched:
            return output.squeeze(1), h_n.squeeze(1)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

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

    def _zeros(self: Any, x: Tensor, batch: int) -> Tensor:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        return x.new_zeros((layers, batch, self.hidden_size))

    def _run_packed(
        self: Any, input: PackedSequence, hx: Tensor | None
    ) -> tuple[PackedSequence, Tensor]:
        x, batch_sizes, order = input.data, input.batch_sizes, input.sorted_indices
        hx = self._zeros(x, int(batch_sizes[0])) if hx is None else self.permute_hidden(hx, order)
        if self._path(x, hx, batch_sizes, False) == "kernel":
            output, h_n = self._run("kernel", x, hx, None, None, batch_sizes)
        else:
            packed, h_n = self._stock.forward(self, PackedSequence(x, batch_sizes), hx)
            output = packed.data
        packed = _packed(output, batch_sizes, order)
        return packed, self.permute_hidden(h_n, packed.unsorted_indices)

    def _run(
        self: Any, path: str, x: Tensor, h_0: Tensor, *extent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All layers, on (L, N, D) with lengths and reset, or on (rows, D) with batch_sizes too."""
        cell, directions = CELLS[self.mode.lower()], 2 if self.bidirectional else 1
        run_layer: Any = run_scan
        if path == "kernel":
            run_layer = partial(run_engine, recompute=self.recompute)

        def layer(k: int, x: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
            names = self._all_weights[k * directions : (k + 1) * directions]
            weights = [Weights(*(getattr(self, name) for name in each)) for each in names]
            return run_layer(cell, x, h_0, weights, *extent)

        def dropout(x: Tensor) -> Tensor:
            return F.dropout(x, self.dropout, training=True)

        between = dropout if self.training and self.dropout > 0 else None
        output, finals = stack.run(self.num_layers, directions, layer, x, h_0, between)
        return output, finals[0] if len(finals) == 1 else flow.cat(finals)


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
    With ``recompute=True`` training keeps half the memory; see :class:`GRU`.

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
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

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


def _step(cell: Any, stock: Any, name: str, input: Tensor, hx: Any) -> Tensor:
    """One step of a cell, as its OneFlow class `stock` does it."""
    D, H = cell.input_size, cell.hidden_size
    state = (*input.shape[:-1], H)
    if hx is None:
        hx = input.new_zeros(state)
    weights = Weights(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    valid = input.dim() in (1, 2) and input.shape[-1] == D and tuple(hx.shape) == state
    served = name in CELLS and is_served(input, hx, *(w for w in weights if w is not None))
    if not (valid and served):
        _paths.take("oneflow", cell._get_name())
        return stock.forward(cell, input, hx)
    _paths.take("kernel", cell._get_name())
    rows = input.shape[0] if input.dim() == 2 else 1
    x, h_0 = input.reshape(1, rows, D), hx.reshape(1, rows, H)
    return run_engine(CELLS[name], x, h_0, [weights])[1].reshape(*state)


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

    >>> import oneflow, elman.oneflow
    >>> elman.oneflow.GRUCell(3, 4)(oneflow.ones(2, 3)).shape
    oneflow.Size([2, 4])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input (N, D) or (D), hx (N, H) or (H), zeros by default. Returns h'."""
        return _step(self, nn.GRUCell, "gru", input, hx)


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


_OURS = {nn.RNN: RNN, nn.GRU: GRU, nn.RNNCell: RNNCell, nn.GRUCell: GRUCell}


def accelerate(model: nn.Module, undo: bool = False) -> list[str]:
    """Turn every stock RNN, GRU, RNNCell and GRUCell of a model into Elman's, in place.

    The modules stay the same objects, with their parameters, hooks and buffers; only their class
    changes, so that optimisers and other references hold. Subclasses of OneFlow's classes are left
    alone. Returns the names of the modules that it turned, "" for the model itself; a second call
    finds none. With ``undo=True`` it turns those back, and returns their names.

    >>> import oneflow, elman.oneflow
    >>> model = oneflow.nn.Sequential(oneflow.nn.Linear(3, 3), oneflow.nn.GRU(3, 4))
    >>> elman.oneflow.accelerate(model)
    ['1']
    >>> elman.oneflow.accelerate(model, undo=True)
    ['1']
    """
    return swap(model.named_modules(), _OURS, undo)
