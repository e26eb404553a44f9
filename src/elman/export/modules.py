"""A model of a PyTorch module."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (tensors and modules are partly untyped)

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from elman.export.layers import Conv1d, Linear, ReLU, Sigmoid, Softmax, Tanh
from elman.export.model import Layer, Model
from elman.layers import GRU, LSTM, RNN

if TYPE_CHECKING:
    from torch import nn


def from_torch(module: "nn.Module") -> Model:
    """The model of a PyTorch module.

    Parameters
    ----------
    module : an ``nn.Sequential``, with others in it or not, or one layer. Known are RNN, GRU and
        LSTM, of ``torch.nn`` and ``elman.torch``, Linear, Conv1d, Tanh, Sigmoid, ReLU, Softmax over
        the features, and Dropout and Identity, which do nothing here. A Conv1d has neither stride
        nor groups; its padding is 0, or (kernel - 1) * dilation, of whose output the first L steps
        are those of the model.

    The model is run on (L, N, D) or (L, D), whatever batch_first says, and wherever the features of
    a Conv1d stand in PyTorch; a recurrent layer hands on its output alone.

    Raises ValueError for a module that is not known, by its name, and TypeError for weights that
    are not float32.

    >>> import elman.export, torch
    >>> amp = torch.nn.Sequential(torch.nn.LSTM(1, 20), torch.nn.Linear(20, 1))
    >>> elman.export.from_torch(amp)
    Model([LSTM(1, 20), Linear(20, 1)])
    """
    return Model([layer for name, one in _leaves("", module) for layer in _layers(name, one)])


def _leaves(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    """The modules that are none's of a Sequential, in order, by their names."""
    from torch import nn

    if isinstance(module, nn.Sequential):
        for inner, child in module.named_children():
            yield from _leaves(f"{name}.{inner}" if name else inner, child)
    else:
        yield name, module


def _layers(name: str, module: Any) -> list[Layer]:
    """The layer that a module is, or none."""
    from torch import nn

    title = f"from_torch: {name + ': ' if name else ''}{type(module).__name__}"
    if isinstance(module, nn.RNNBase):
        return [_recurrent(title, module)]
    match module:
        case nn.Linear():
            return [Linear(_array(module.weight), _array(module.bias))]
        case nn.Conv1d():
            return [_conv1d(title, module)]
        case nn.Softmax() if module.dim not in (-1, 2):
            raise ValueError(f"{title}: dim must be -1, the features, got {module.dim}")
        case nn.Dropout() | nn.Identity():
            return []
        case _:
            pass
    plain: dict[Any, Layer] = {
        nn.Tanh: Tanh(),
        nn.Sigmoid: Sigmoid(),
        nn.ReLU: ReLU(),
        nn.Softmax: Softmax(),
    }
    if type(module) not in plain:
        raise ValueError(
            f"{title} is not known; a model is a Sequential of RNN, GRU, LSTM, Linear, Conv1d, "
            "Tanh, Sigmoid, ReLU, Softmax, Dropout and Identity"
        )
    return [plain[type(module)]]


def _recurrent(title: str, module: Any) -> Layer:
    kind, _, nonlinearity = module.mode.partition("_")
    if module.bidirectional:
        raise ValueError(f"{title}: a model has one direction, got bidirectional=True")
    options: dict[str, Any] = {"num_layers": module.num_layers, "bias": module.bias}
    if kind == "RNN":
        options["nonlinearity"] = nonlinearity.lower()
    elif kind == "GRU":
        options["reset_after"] = getattr(module, "reset_after", True)
    else:
        options["proj_size"] = module.proj_size
    weights = {name: _array(w) for name, w in module.state_dict().items()}
    layer = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}[kind](
        module.input_size, module.hidden_size, **options
    )
    layer.load_state_dict(weights)
    return layer


def _conv1d(title: str, module: Any) -> Conv1d:
    (kernel,), (dilation,), (stride,) = module.kernel_size, module.dilation, module.stride
    causal = ((0,), ((kernel - 1) * dilation,))
    if (stride, module.groups, module.padding_mode) != (1, 1, "zeros"):
        raise ValueError(f"{title}: stride and groups must be 1 and padding zeros, got {module}")
    if module.padding not in causal:
        expected = f"0 or {math.prod(causal[1])}"
        raise ValueError(f"{title}: padding must be {expected}, got {module.padding!r}")
    return Conv1d(_array(module.weight), _array(module.bias), dilation)


def _array(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().cpu().numpy()
