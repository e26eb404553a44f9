"""The layers and cells of the PyTorch package: ``torch.nn``'s classes on Elman's engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from __future__ import annotations  # torch.compile of torch 2.6 cannot read unions

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.fx.proxy import Proxy, TraceError
from torch.nn.utils.rnn import PackedSequence

from elman.spec import (
    CELLS,
    WEIGHTS,
    Cell,
    Shape,
    Spec,
    Weights,
    check_lengths,
    check_lengths_lie_within,
    check_reset,
    check_weights,
    gru,
    takes,
)
from elman.swap import swap
from elman.torch import calls
from elman.torch.operators import HALVES, Call, is_transformed, run_kernel, run_module, run_scan
from elman.torch.operators import paths as _paths

paths, require = _paths.counts, _paths.require


_STRIDED = torch.strided
_FLOATS = frozenset((torch.float32, torch.float64, *HALVES))
# The types that oneDNN has no LSTM of on this processor.
_LACKING = frozenset(
    half
    for half, has in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if torch.backends.mkldnn.is_available() and not has()
)


def served(x: Tensor, states: Sequence[Tensor], *weights: Any) -> bool:
    """Whether the engine takes these tensors."""
    dtype = x.dtype
    if dtype not in _FLOATS or torch.is_autocast_enabled("cpu"):
        return False
    of_state = states[0].dtype if states else dtype
    if of_state != dtype and not (of_state == torch.float32 and dtype in HALVES):
        return False
    for tensors, expected in (((x, *weights), dtype), (states, of_state)):
        for t in tensors:
            if t is not None and (t.dtype != expected or not t.is_cpu or t.layout != _STRIDED):
                return False
    return True


def run_rounded(cell: str, x: Tensor, h_0: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The engine, with x, output and mostly the state rounded in half precision."""
    if x.dtype not in HALVES:
        return run_kernel(cell, x, h_0, *arguments)
    state = None if h_0 is None else h_0.float()
    output, h_n = run_kernel(cell, x.float(), state, *arguments)
    return output.to(x.dtype), h_n.to(x.dtype if h_0 is None else h_0.dtype)


def _given(cell: Cell, x: Any, hx: Any) -> Sequence[Tensor] | None:
    """The states of a call: h, or h and c, or none for zeros. None if these or x are no tensors."""
    states: Any = (hx,) if len(cell.states) == 1 else hx
    if hx is None:
        states = ()
    elif not isinstance(states, (tuple, list)) or len(states) != len(cell.states):
        return None
    for t in (x, *states):
        if not isinstance(t, Tensor) or t.is_nested:  # which may have no shape
            return None
    return states


def _pair(last: Sequence[Tensor]) -> Any:
    """Final states as torch's classes give them: h, or (h, c)."""
    return last[0] if len(last) == 1 else tuple(last)


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether gradients may be asked for, so that forward keeps what backward needs."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True  # a trace holds for training and inference
    if not torch.is_grad_enabled():
        return False
    # A transform may hide what it differentiates.
    return is_transformed() or any(t is not None and t.requires_grad for t in tensors)


def needs_loop() -> bool:
    """Whether a transform is at work that sees tensor operations alone.

    Such are forward mode, as the engine has no forward derivatives, and functionalize.
    """
    if is_compiling():
        return False
    return forward_ad._current_level >= 0 or is_transformed(TransformType.Functionalize)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def _becomes_onnx() -> bool:
    """Whether ``torch.onnx.export`` is tracing."""
    return is_compiling() and _exporter_runs()


@torch.compiler.assume_constant_result
def _exporter_runs() -> bool:
    return torch.onnx.is_in_onnx_export()  # of which torch.compile would make False


def _tensor(title: str, name: str, values: Any) -> Tensor:
    """Lengths or resets as a tensor, which shares no memory with an array of the caller's."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise RuntimeError(f"{title}: {name} must be dense, got {values.layout}")
        return values
    try:
        if isinstance(values, np.ndarray):  # of any strides and byte order
            values = values.astype(values.dtype.newbyteorder("="), order="C")
        return torch.tensor(values, device="cpu")  # whatever the default
    except (TypeError, ValueError, RuntimeError) as e:
        raise RuntimeError(f"{title}: {name} is nothing that torch reads: {e}") from e


def _check_shapes(title: str, expected: Mapping[str, Shape], weights: Mapping[str, Any]) -> None:
    shapes = {name: tuple(w.shape) for name, w in weights.items() if w is not None}
    check_weights(title, expected, shapes, RuntimeError)


def _node(module: Any, input: Any, hx: Any, **extent: Any) -> Any:
    """A call in a graph of torch.fx, which looks into a module no more than into torch.nn's."""
    name = input.tracer.path_of_module(module)
    if not name:
        raise TraceError(
            f"{module._get_name()}: torch.fx traces a model that has this module, not the module "
            "alone; put it into a torch.nn.Sequential"
        )
    extent = {k: v for k, v in extent.items() if v is not None}
    return input.tracer.create_proxy("call_module", name, (input, hx), extent)


def _refuse_scripting(module: Any) -> Any:
    raise NotImplementedError(
        f"{module._get_name()}: torch.jit.script cannot compile Elman's classes. Use "
        "torch.jit.trace, torch.export or torch.compile; or turn an accelerated model back first, "
        "with elman.torch.accelerate(model, undo=True)"
    )


class _Layer(nn.RNNBase):
    """What RNN, GRU and LSTM share: everything but the constructor."""

    _stock: type[nn.RNNBase]
    recompute = False
    __prepare_scriptable__ = _refuse_scripting

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
    ) -> tuple[Any, Any]:
        """Run the layer, as ``torch.nn``'s does.

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
        What torch's layer raises, and RuntimeError for lengths or reset of the wrong shape, type or
        value, or beside a PackedSequence.
        """
        if isinstance(input, Proxy):
            return _node(self, input, hx, lengths=lengths, reset=reset)
        if lengths is not None:
            lengths = _tensor(type(self).__name__, "lengths", lengths)
        if reset is not None:
            reset = _tensor(type(self).__name__, "reset", reset)
        if not is_compiling():
            results = calls.run(self.mode, self.__dict__, input, hx, lengths, reset)
            if results is not None:
                return results
        return self._run(input, hx, lengths, reset)

    def _run(self, input: Any, hx: Any, lengths: Tensor | None, reset: Tensor | None) -> Any:
        """Step by step, whatever is about."""
        extended = lengths is not None or reset is not None
        packed = isinstance(input, PackedSequence)
        if packed and extended:
            name = type(self).__name__
            raise RuntimeError(f"{name}: lengths= and reset= go with padded input, not packed")
        x, batch = (input.data, int(input.batch_sizes[0])) if packed else (input, None)
        given = _given(self._cell, x, hx)
        valid = given is not None and takes(self, x.shape, [s.shape for s in given], batch)
        states = given or ()
        own = self._parameters  # quicker than by attribute
        weights: list[Any] = [
            own[name] if name in own else getattr(self, name)
            for names in self._all_weights
            for name in names
        ]
        if valid:
            self._check_weights(weights)
        loop = needs_loop() or self._is_beyond_torch(packed)
        kernel = valid and not loop and (_becomes_onnx() or served(x, states, *weights))
        lacking = self._cell.gated is not None  # torch has no such layer
        if not valid or not (kernel or extended or loop or lacking):
            _paths.take("torch", type(self).__name__, self.num_layers)
            if packed and given and not valid:
                # torch's LSTM does not look at their sizes, and reads past their end.
                ordered = self.permute_hidden(hx, input.sorted_indices)
                self.check_forward_args(x, ordered, input.batch_sizes)
            result = self._stock.forward(self, input, hx)  # pyright: ignore[reportArgumentType]
            beyond = extended or lacking
            assert valid or not beyond, "torch's layer took what spec.takes did not"
            return result
        if kernel:
            _paths.check("kernel", type(self).__name__)  # the operator counts, when it runs
        else:
            _paths.take("scan", type(self).__name__, self.num_layers)
        if packed:
            return self._run_packed(input, hx, weights, kernel)
        return self._run_padded(x, states, weights, kernel, lengths, reset)

    def _check_weights(self, weights: Sequence[Any]) -> None:
        """Raise unless the weights are those of its sizes and options, which anybody may set."""
        if is_compiling():
            return
        sizes = (self.input_size, self.hidden_size, self.num_layers)
        options = (self.bias, self.batch_first, 0.0, self.bidirectional, self.proj_size)
        shapes = Spec(self._cell, *sizes, *options).weight_shapes()
        names = [name for each in self._all_weights for name in each]
        given = dict(zip(names, weights, strict=True))
        _check_shapes(type(self).__name__, shapes, given)

    def _run_padded(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        weights: list[Tensor],
        kernel: bool,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, Any]:
        batched, name = x.dim() == 3, type(self).__name__
        if lengths is not None:
            batch = (x.shape[0 if self.batch_first else 1],) if batched else ()
            integral = not lengths.dtype.is_floating_point and not lengths.dtype.is_complex
            integral = integral and lengths.dtype != torch.bool
            check_lengths(name, tuple(lengths.shape), integral, batch, RuntimeError)
            lengths = lengths.to(x.device, torch.int64).reshape(-1)
            if not (kernel or needs_loop()):
                steps = x.shape[1 if batched and self.batch_first else 0]
                check_lengths_lie_within(name, lengths.tolist(), steps, RuntimeError)
        if reset is not None:
            boolean = reset.dtype == torch.bool
            check_reset(name, tuple(reset.shape), boolean, tuple(x.shape[:-1]), RuntimeError)
            reset = reset.to(x.device)
        if x.dtype != weights[0].dtype:
            self.check_input(x, None)  # which raises, except under autocast
        output, *last = self._run_layers(
            x, states, weights, kernel, lengths, reset, is_batched=batched
        )
        return output, _pair(last)

    def _run_packed(
        self, input: PackedSequence, hx: Any, weights: list[Tensor], kernel: bool
    ) -> tuple[PackedSequence, Any]:
        x, batch_sizes, sorted_indices, unsorted_indices = input
        states: Sequence[Tensor]
        if hx is None:
            K, N = len(self._all_weights), int(batch_sizes[0])
            states = [x.new_zeros(K, N, size) for size in self._sizes]
        else:
            hx = self.permute_hidden(hx, sorted_indices)
            self.check_forward_args(x, hx, batch_sizes)  # of any order, which may name other rows
            states = _given(self._cell, x, hx) or ()
        output, *last = self._run_layers(
            x, states, weights, kernel, batch_sizes=batch_sizes, batch_first=False
        )
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(_pair(last), unsorted_indices)

    def _is_beyond_torch(self, packed: bool) -> bool:
        """Whether torch's layer fails: autocast takes oneDNN, which may lack the type."""
        if self._stock is not nn.LSTM or packed or self.proj_size:
            return False
        return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") in _LACKING

    @property
    def _cell(self) -> Cell:
        return CELLS[self.mode.lower()]

    @property
    def _sizes(self) -> Sequence[int]:
        """The features of each state."""
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return sizes[: len(self._cell.states)]

    def _run_layers(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        weights: list[Tensor],
        kernel: bool,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        *,
        batch_sizes: Tensor | None = None,
        **axes: bool,
    ) -> tuple[Tensor, ...]:
        cell, directions = self._cell.name, 2 if self.bidirectional else 1
        axes = {"batch_first": self.batch_first, **axes}
        call = Call(cell, self.num_layers, directions, recompute=self.recompute, **axes)
        keep = is_differentiated(x, *states, *weights)
        there = (True, True, self.bias, self.bias, self.proj_size > 0)
        given = iter(weights)
        named = [next(given) if is_there else None for _ in self._all_weights for is_there in there]

        def layer(k: int, x: Tensor, h_0: Any, *given: Any) -> tuple[Tensor, Tensor]:
            if _becomes_onnx():
                from elman.torch import export

                return export.run_layer(self, weights, given[-2], given[-1], k, x, h_0)
            if not kernel:
                return run_scan(cell, x, h_0, *given, batch_sizes)
            return run_rounded(cell, x, h_0, *given, batch_sizes, keep, self.recompute)

        between = None
        if self.training and self.dropout > 0:
            between = partial(F.dropout, p=self.dropout, training=True)
        return run_module(call, layer, x, states, named, lengths, reset, between)


class RNN(_Layer):
    """``torch.nn.RNN`` on Elman's engine: the same arguments, weights, results and errors.

    ::

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)     or relu in place of tanh

    ``recompute``, keyword only, is taken as by :class:`GRU`; an RNN keeps no more than its states
    either way.

    >>> import torch, elman.torch
    >>> output, h_n = elman.torch.RNN(3, 4)(torch.ones(5, 2, 3), lengths=[5, 1])
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    _stock = nn.RNN

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        recompute = kwargs.pop("recompute", False)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)
        self.recompute = recompute


class GRU(_Layer):
    """``torch.nn.GRU`` on Elman's engine: the same arguments, weights, results and errors.

    ::

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))     or W_hn (r * h) + b_hn
        h' = (1 - z) * n + z * h

    With ``reset_after=False``, keyword only, the reset gate is applied before the recurrent
    product, the second form: a layer that torch has not, whose weights look the same. What the
    engine does not take goes to the loop on tensors then, and not to torch's layer.

    With ``recompute=True``, keyword only, forward keeps the states alone for backward, which
    computes the gates from them once more: a fifth of the memory for up to 1.4 times the time of
    training, and the same gradients, bit for bit.

    In bfloat16 and float16, input, output and weights are of that type and all arithmetic is
    float32. So is the state; hx may be float32 too, and h_n then is, so that a sequence in chunks
    has the bits of the whole.

    >>> import torch, elman.torch
    >>> gru = elman.torch.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    >>> output, h_n = gru(torch.ones(2, 5, 3), lengths=torch.tensor([5, 1]))
    >>> output.shape, h_n.shape
    (torch.Size([2, 5, 8]), torch.Size([4, 2, 4]))
    """

    _stock = nn.GRU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        recompute = kwargs.pop("recompute", False)
        cell = gru("GRU", kwargs.pop("reset_after", True))
        super().__init__("GRU", *args, **kwargs)
        self.mode = cell.name.upper()
        self.recompute = recompute

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate is applied after the recurrent product."""
        return self._cell.gated is None

    def flatten_parameters(self) -> None:
        """As torch's layer, on a GPU, for cuDNN; which has no other GRU, and would raise."""
        if self.reset_after:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        """The arguments that are not defaults."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class LSTM(_Layer):
    """``torch.nn.LSTM`` on Elman's engine: the same arguments, weights, results and errors.

    ::

        i  = σ(W_ii x + b_ii + W_hi h + b_hi)
        f  = σ(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = σ(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')              with proj_size, h' = W_hr (o * tanh(c'))

    The state is a pair: ``output, (h_n, c_n) = lstm(input, (h_0, c_0))``. With ``proj_size`` P, h
    and output have P features, and c has H.

    With ``recompute=True``, keyword only, training keeps a third of the memory; see :class:`GRU`,
    also for bfloat16 and float16: both states are float32 then, and may be given so.

    >>> import torch, elman.torch
    >>> lstm = elman.torch.LSTM(3, 4, num_layers=2, proj_size=2)
    >>> output, (h_n, c_n) = lstm(torch.ones(5, 2, 3), lengths=[5, 1])
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([5, 2, 2]), torch.Size([2, 2, 2]), torch.Size([2, 2, 4]))
    """

    _stock = nn.LSTM
    # What torch's LSTM has of its own, for two states.
    check_forward_args = nn.LSTM.check_forward_args  # pyright: ignore[reportAssignmentType]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        recompute = kwargs.pop("recompute", False)
        super().__init__("LSTM", *args, **kwargs)
        self.recompute = recompute


_RNN = {"tanh": "rnn_tanh", "relu": "rnn_relu"}  # the cells by their nonlinearity


def _step(module: Any, stock: Any, name: str, input: Any, hx: Any) -> Any:
    """One step of a cell, as its torch class `stock` does it."""
    if not is_compiling():
        results = calls.run(name, module.__dict__, input, hx)
        if results is not None:
            return results
    if isinstance(input, Proxy):
        return _node(module, input, hx)
    cell, H = CELLS[name], module.hidden_size
    weights = Weights(module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    given = _given(cell, input, hx)
    valid = given is not None and input.dim() in (1, 2) and input.shape[-1] == module.input_size
    batch, states = input.shape[:-1] if valid else (), given or ()
    valid = valid and all(tuple(s.shape) == (*batch, H) for s in states)
    valid = valid and module.input_size > 0 and H > 0  # torch's cells may be empty
    bias = weights.b_ih is not None
    valid = valid and bias == (weights.b_hh is not None)  # torch's may have one alone
    if valid and not is_compiling():
        shapes = Spec(cell, module.input_size, H, bias=bias).cell_weight_shapes()
        names = zip(WEIGHTS, weights, strict=True)
        _check_shapes(module._get_name(), shapes, dict(names))
    loop = needs_loop() or _becomes_onnx()
    kernel = valid and not loop and served(input, states, *weights)
    if not kernel and not (valid and cell.gated):
        _paths.take("torch", module._get_name())
        result = stock.forward(module, input, hx)
        if cell.gated is None:
            return result
        raise RuntimeError(
            f"{module}: with reset_after=False input_size and hidden_size must be at least 1, "
            "and bias_ih and bias_hh both be there, or neither"
        )
    if kernel:
        _paths.check("kernel", module._get_name())
    else:
        _paths.take("scan", module._get_name())
    keep = is_differentiated(input, *states, *weights)
    call = Call(name, is_cell=True, is_batched=input.dim() == 2)

    def layer(_: int, *arguments: Any) -> tuple[Tensor, Tensor]:
        if not kernel:
            return run_scan(name, *arguments, None)
        return run_rounded(name, *arguments, None, keep, False)

    return _pair(run_module(call, layer, input, states, weights))


class RNNCell(nn.RNNCell):
    """``torch.nn.RNNCell`` on Elman's engine: the same arguments, weights, results and errors.

    >>> import torch, elman.torch
    >>> elman.torch.RNNCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    __prepare_scriptable__ = _refuse_scripting

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input (N, D) or (D), hx (N, H) or (H), zeros by default. Returns h'."""
        name = _RNN.get(self.nonlinearity)
        if name is None:
            return super().forward(input, hx)  # which raises
        return _step(self, nn.RNNCell, name, input, hx)


class GRUCell(nn.GRUCell):
    """``torch.nn.GRUCell`` on Elman's engine: the same arguments, weights, results and errors.

    With ``reset_after=False``, keyword only, the reset gate is applied before the recurrent
    product, as in :class:`GRU`.

    >>> import torch, elman.torch
    >>> elman.torch.GRUCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    __prepare_scriptable__ = _refuse_scripting
    reset_after = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        gru("GRUCell", reset_after)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        """The arguments that are not defaults."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input (N, D) or (D), hx (N, H) or (H), zeros by default. Returns h'."""
        name = "gru" if self.reset_after else "gru_reset_before"
        return _step(self, nn.GRUCell, name, input, hx)


class LSTMCell(nn.LSTMCell):
    """``torch.nn.LSTMCell`` on Elman's engine: the same arguments, weights, results and errors.

    >>> import torch, elman.torch
    >>> h, c = elman.torch.LSTMCell(3, 4)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    __prepare_scriptable__ = _refuse_scripting

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: input (N, D) or (D), hx a pair (h, c) of (N, H) or (H), zeros by default.

        Returns (h', c').
        """
        return _step(self, nn.LSTMCell, "lstm", input, hx)


_OURS = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}


def accelerate(model: nn.Module, undo: bool = False) -> list[str]:
    """Turn every stock RNN, GRU, LSTM and cell of these of a model into Elman's, in place.

    The modules stay the same objects, with their parameters, hooks and buffers; only their class
    changes, so that optimisers and other references hold. Subclasses of torch's classes are left
    alone. Returns the names of the modules that it turned, "" for the model itself; a second call
    finds none. With ``undo=True`` it turns those back, and returns their names.

    >>> import torch, elman.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRU(3, 4))
    >>> elman.torch.accelerate(model)
    ['1']
    >>> model[1]
    GRU(3, 4)
    >>> elman.torch.accelerate(model, undo=True)
    ['1']
    """
    return swap(model.named_modules(), _OURS, undo)
