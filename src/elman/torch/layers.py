"""The layers and cells of the PyTorch package: ``torch.nn``'s classes on Elman's engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from __future__ import annotations  # torch.compile of torch 2.6 cannot read unions

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elman.spec import gru
from elman.torch.modules import (
    STOCK,
    Unscriptable,
    cell_of,
    run_cell,
    run_layer,
    trace_forward,
)

Device = torch.device | int | str | None
_P = ParamSpec("_P")


class _Layer(nn.RNNBase):
    """What RNN, GRU and LSTM share: everything but the constructor."""

    recompute = False
    __jit_ignored_attributes__ = Unscriptable()
    _slow_forward = trace_forward

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
        return run_layer(self, input, hx, lengths, reset)


def _shown_as(declared: Callable[_P, None]) -> Callable[[Callable[..., None]], Callable[_P, None]]:
    """A constructor with another one's signature, as help, editors and type checkers see it.

    What it is given goes on to torch's as it is, so that errors are torch's.
    """

    def show(build: Any) -> Any:
        build.__signature__ = inspect.signature(declared)
        return build

    return show


def _rnn(
    self: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    device: Device = None,
    dtype: torch.dtype | None = None,
    *,
    recompute: bool = False,
) -> None: ...


def _gru(
    self: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    device: Device = None,
    dtype: torch.dtype | None = None,
    *,
    reset_after: bool = True,
    recompute: bool = False,
) -> None: ...


def _lstm(
    self: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    proj_size: int = 0,
    device: Device = None,
    dtype: torch.dtype | None = None,
    *,
    recompute: bool = False,
) -> None: ...


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

    @_shown_as(_rnn)
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

    @_shown_as(_gru)
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
        return cell_of(self).gated is None

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

    # What torch's LSTM has of its own, for two states.
    check_forward_args = nn.LSTM.check_forward_args  # pyright: ignore[reportAssignmentType]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # pyright: ignore[reportAssignmentType]

    @_shown_as(_lstm)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        recompute = kwargs.pop("recompute", False)
        super().__init__("LSTM", *args, **kwargs)
        self.recompute = recompute


_RNN = {"tanh": "rnn_tanh", "relu": "rnn_relu"}  # the cells by their nonlinearity


class RNNCell(nn.RNNCell):
    """``torch.nn.RNNCell`` on Elman's engine: the same arguments, weights, results and errors.

    >>> import torch, elman.torch
    >>> elman.torch.RNNCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    __jit_ignored_attributes__ = Unscriptable()

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: input (N, D) or (D), hx (N, H) or (H), zeros by default. Returns h'."""
        name = _RNN.get(self.nonlinearity)
        if name is None:
            return STOCK["RNNCell"].forward(self, input, hx)  # which raises
        return run_cell(self, name, input, hx)


class GRUCell(nn.GRUCell):
    """``torch.nn.GRUCell`` on Elman's engine: the same arguments, weights, results and errors.

    With ``reset_after=False``, keyword only, the reset gate is applied before the recurrent
    product, as in :class:`GRU`.

    >>> import torch, elman.torch
    >>> elman.torch.GRUCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    __jit_ignored_attributes__ = Unscriptable()
    reset_after = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
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
        is_after = self.__dict__.get("reset_after", True)  # of torch's class too
        return run_cell(self, "gru" if is_after else "gru_reset_before", input, hx)


class LSTMCell(nn.LSTMCell):
    """``torch.nn.LSTMCell`` on Elman's engine: the same arguments, weights, results and errors.

    >>> import torch, elman.torch
    >>> h, c = elman.torch.LSTMCell(3, 4)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    __jit_ignored_attributes__ = Unscriptable()

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: input (N, D) or (D), hx a pair (h, c) of (N, H) or (H), zeros by default.

        Returns (h', c').
        """
        return run_cell(self, "lstm", input, hx)
