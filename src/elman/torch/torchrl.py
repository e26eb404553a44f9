"""TorchRL's GRUModule and LSTMModule, which read rollouts with episodes in them in one call.

Where episodes begin within a rollout, TorchRL's modules cut it into pieces and pad these. Here
``is_init`` is the layer's ``reset=``. All else is TorchRL's: keys, ``set_recurrent_mode``,
``make_tensordict_primer``, the weights by a seed and the names in ``state_dict``.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportCallIssue=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (TorchRL is not needed for anything else, and may not be installed)

from collections.abc import Sequence
from typing import Any

from tensordict.nn import dispatch
from torch import Tensor
from torch.nn import functional as F
from torchrl import modules

from elman.torch.layers import GRU, LSTM, Device

__all__ = ["GRUModule", "LSTMModule"]

Key = str | tuple[str, ...]


class _OneCall:
    """What the two have of their own: how the layer reads a tensordict."""

    recurrent_mode: bool
    in_keys: list[Any]
    out_keys: list[Any]

    def make_cudnn_based(self) -> Any:
        """Nothing: the layer stays Elman's."""
        return self

    make_python_based = make_cudnn_based

    def _read(self, layer: GRU | LSTM, tensordict: Any) -> Any:
        shape, (of_input, *of_states, of_reset) = tensordict.shape, self.in_keys
        if self.recurrent_mode and not shape:
            raise ValueError(
                f"{type(self).__name__}: in recurrent mode the last axis of a tensordict is time, "
                "and this one has no axis"
            )
        L = shape[-1] if self.recurrent_mode else 1

        def rows(key: Any) -> Tensor:
            """(N, L, ...), of any number of axes before time."""
            values = tensordict[key]
            return values.reshape(-1, L, *values.shape[len(shape) :])

        hx: Any = None
        if any(tensordict.get(key, None) is not None for key in of_states):
            hx = tuple(rows(key)[:, 0].transpose(0, 1) for key in of_states)
            hx = hx if len(hx) > 1 else hx[0]
        output, last = layer(rows(of_input), hx, reset=rows(of_reset)[..., 0])
        tensordict.set(self.out_keys[0], output.reshape(*shape, -1))
        states = last if isinstance(last, tuple) else (last,)
        for key, state in zip(self.out_keys[1:], states, strict=True):
            at_end = F.pad(state.transpose(0, 1)[:, None], (0, 0, 0, 0, L - 1, 0))
            tensordict.set(key, at_end.reshape(*shape, *at_end.shape[2:]))
        return tensordict


class GRUModule(_OneCall, modules.GRUModule):
    """TorchRL's GRUModule on :class:`elman.torch.GRU`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, dropout, device : as of :class:`elman.torch.GRU`.
    in_key or in_keys, out_key or out_keys, default_recurrent_mode : as of TorchRL's module.

    A call is one step for each element of a tensordict; under ``set_recurrent_mode(True)`` its last
    axis is time. The features of input (..., D) are (..., H); states are (..., K, H) for K
    layers. A sequence begins in the state at its first step, or zeros if there is none, and an
    episode, where ``is_init`` is True, in zeros. Of the states that come out of a sequence the one
    at its last step is its last, and the others are 0.

    ::

        memory = GRUModule(4, 64, in_key="observation", out_key="features")
        env = TransformedEnv(env, Compose(InitTracker(), memory.make_tensordict_primer()))
        policy = TensorDictSequential(memory, head)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        in_key: Key | None = None,
        in_keys: Sequence[Key] | None = None,
        out_key: Key | None = None,
        out_keys: Sequence[Key] | None = None,
        device: Device = None,
        default_recurrent_mode: bool | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        gru = GRU(*sizes, bias, batch_first=True, dropout=dropout, device=device)
        super().__init__(
            gru=gru,
            in_key=in_key,
            in_keys=in_keys,
            out_key=out_key,
            out_keys=out_keys,
            default_recurrent_mode=default_recurrent_mode,
        )

    @dispatch
    def forward(self, tensordict: Any) -> Any:
        """Set the features and states of a tensordict, and return it."""
        return self._read(self.gru, tensordict)


class LSTMModule(_OneCall, modules.LSTMModule):
    """TorchRL's LSTMModule on :class:`elman.torch.LSTM`: as :class:`GRUModule`, with two states.

    ``proj_size`` is the layer's: features and the first state then have P in place of H.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        proj_size: int = 0,
        *,
        in_key: Key | None = None,
        in_keys: Sequence[Key] | None = None,
        out_key: Key | None = None,
        out_keys: Sequence[Key] | None = None,
        device: Device = None,
        default_recurrent_mode: bool | None = None,
    ) -> None:
        sizes, options = (input_size, hidden_size, num_layers), (dropout, False, proj_size)
        lstm = LSTM(*sizes, bias, True, *options, device)  # batch_first, and one direction
        super().__init__(
            lstm=lstm,
            in_key=in_key,
            in_keys=in_keys,
            out_key=out_key,
            out_keys=out_keys,
            default_recurrent_mode=default_recurrent_mode,
        )

    @dispatch
    def forward(self, tensordict: Any) -> Any:
        """Set the features and states of a tensordict, and return it."""
        return self._read(self.lstm, tensordict)
