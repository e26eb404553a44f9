"""What stands before and behind recurrent layers in a model, on NumPy arrays."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (methods of arrays of any dtype are partly untyped)

from collections.abc import Callable
from typing import Any

import numpy as np

from elman.engine import Array
from elman.export import arithmetic
from elman.weights.files import as_array


def float32(title: str, name: str, values: Any) -> Array:
    """The values as an array in order, if they are float32; `name` stands in the error."""
    a = as_array(title, values)
    if a.dtype != np.float32:
        raise TypeError(f"{title}: {name} must be float32, got {a.dtype}")
    return np.array(a, order="C")


class Linear:
    """W x + b at each step.

    Parameters
    ----------
    weight : W, (P, D), float32.
    bias : b, (P), float32. Default: zeros.

    Raises ValueError for a shape that is off, TypeError for another dtype.

    >>> import elman.export, numpy as np
    >>> elman.export.Linear(np.ones((2, 3), "float32"))
    Linear(3, 2)
    """

    def __init__(self, weight: Any, bias: Any = None) -> None:
        self.weight = float32("Linear", "weight", weight)
        if self.weight.ndim != 2 or not self.weight.size:
            raise ValueError(f"Linear: weight must be (P, D), got {self.weight.shape}")
        self.output_size, self.input_size = self.weight.shape
        self.bias = _bias("Linear", bias, self.output_size)

    def __call__(self, x: Array) -> Array:
        """X is (..., D), what comes out (..., P)."""
        return arithmetic.product(x, self.weight.T, self.bias)

    def __repr__(self) -> str:
        return f"Linear({self.input_size}, {self.output_size})"


class Conv1d:
    """A causal convolution: b + sum over k of W_k x_{t - (kernel - 1 - k) * dilation}.

    What came before the first step is zeros.

    Parameters
    ----------
    weight : W, (P, D, kernel), float32, as PyTorch's ``Conv1d`` has it.
    bias : b, (P), float32. Default: zeros.
    dilation : steps from one to the next of those that are seen. Default: 1.

    Raises ValueError for a shape that is off, TypeError for another dtype.

    >>> import elman.export, numpy as np
    >>> elman.export.Conv1d(np.ones((2, 3, 5), "float32"), dilation=4)
    Conv1d(3, 2, kernel_size=5, dilation=4)
    """

    def __init__(self, weight: Any, bias: Any = None, dilation: int = 1) -> None:
        self.weight = float32("Conv1d", "weight", weight)
        if self.weight.ndim != 3 or not self.weight.size:
            raise ValueError(f"Conv1d: weight must be (P, D, kernel), got {self.weight.shape}")
        if isinstance(dilation, bool) or not isinstance(dilation, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Conv1d: dilation must be an int, got {dilation!r}")
        if dilation < 1:
            raise ValueError(f"Conv1d: dilation must be at least 1, got {dilation}")
        self.output_size, self.input_size, self.kernel_size = self.weight.shape
        self.dilation = dilation
        self.bias = _bias("Conv1d", bias, self.output_size)

    @property
    def history(self) -> int:
        """How many steps before the present one are seen."""
        return (self.kernel_size - 1) * self.dilation

    def matrix(self) -> Array:
        """The weights as (kernel * D, P)."""
        return self.weight.transpose(2, 1, 0).reshape(-1, self.output_size)

    def __call__(self, x: Array, before: Array) -> tuple[Array, Array]:
        """X is (L, N, D), `before` the inputs before it, (history, N, D); so is what comes back."""
        seen = np.concatenate([before, x])
        taps = [
            seen[k * self.dilation : k * self.dilation + len(x)] for k in range(self.kernel_size)
        ]
        joined = np.concatenate(taps, -1)
        return arithmetic.product(joined, self.matrix(), self.bias), seen[len(x) :]

    def __repr__(self) -> str:
        sizes = f"{self.input_size}, {self.output_size}, kernel_size={self.kernel_size}"
        return f"Conv1d({sizes}, dilation={self.dilation})"


class _Activation:
    """A function of each step's values."""

    name: str
    function: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return type(self).function(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Tanh(_Activation):
    """tanh(x)."""

    name, function = "tanh", arithmetic.tanh


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    name, function = "sigmoid", arithmetic.sigmoid


class ReLU(_Activation):
    """max(0, x)."""

    name, function = "relu", arithmetic.relu


class Softmax(_Activation):
    """exp(x) over their sum, over the features of a step."""

    name, function = "softmax", arithmetic.softmax


Activation = Tanh | Sigmoid | ReLU | Softmax
#: Those of the last four, by their names.
ACTIVATIONS = {each.name: each for each in (Tanh, Sigmoid, ReLU, Softmax)}


def _bias(title: str, bias: Any, size: int) -> Array:
    if bias is None:
        return np.zeros(size, np.float32)
    bias = float32(title, "bias", bias)
    if bias.shape != (size,):
        raise ValueError(f"{title}: bias must have shape {(size,)}, got {bias.shape}")
    return bias
