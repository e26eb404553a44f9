"""Policies for sb3-contrib's RecurrentPPO, which read sequences with episodes in them in one call.

A batch of RecurrentPPO holds sequences some of which begin with an episode, and sb3-contrib's
policies then call their LSTMs step by step, to set states to 0. Here that is ``reset=``. All else
is sb3-contrib's: the constructors' arguments, the weights by a seed, ``state_dict``, ``save`` and
``load``, and the answers but for rounding.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (sb3-contrib is not needed for anything else, and may not be installed)

from functools import wraps
from typing import Any

from sb3_contrib.common.recurrent import policies
from torch import Tensor

from elman.torch.layers import LSTM
from elman.torch.stock import install

__all__ = ["CnnLstmPolicy", "MlpLstmPolicy", "MultiInputLstmPolicy"]


class _OneCall:
    """What the three have of their own: how an LSTM reads its sequences."""

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: LSTM
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output (N*L, H), row by row, and last states for features (N*L, D) and starts (N*L,).

        An episode that starts at a step starts it with states of 0; N is that of the states.
        """
        N = lstm_states[0].shape[1]
        x = features.reshape(N, -1, lstm.input_size).transpose(0, 1)
        reset = (episode_starts.reshape(N, -1) != 0).T
        output, states = lstm(x, lstm_states, reset=reset)
        return output.transpose(0, 1).flatten(0, 1), states


class MlpLstmPolicy(_OneCall, policies.RecurrentActorCriticPolicy):
    """sb3-contrib's MlpLstmPolicy with ``elman.torch.LSTM``, for observations that are vectors.

    ::

        RecurrentPPO(elman.torch.sb3.MlpLstmPolicy, "CartPole-v1").learn(100_000)
    """

    @wraps(policies.RecurrentActorCriticPolicy.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with install():
            super().__init__(*args, **kwargs)


class CnnLstmPolicy(_OneCall, policies.RecurrentActorCriticCnnPolicy):
    """sb3-contrib's CnnLstmPolicy with ``elman.torch.LSTM``, for observations that are images."""

    @wraps(policies.RecurrentActorCriticCnnPolicy.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with install():
            super().__init__(*args, **kwargs)


class MultiInputLstmPolicy(_OneCall, policies.RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's MultiInputLstmPolicy with ``elman.torch.LSTM``, for observations in a dict."""

    @wraps(policies.RecurrentMultiInputActorCriticPolicy.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with install():
            super().__init__(*args, **kwargs)
