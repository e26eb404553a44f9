"""Models in the files of others: RTNeural's JSON, and Neural Amp Modeler's ``.nam`` of LSTMs."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (methods of arrays of any dtype are partly untyped)

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from elman.engine import Array
from elman.export.layers import ACTIVATIONS, Conv1d, Linear
from elman.export.model import Layer, Model, Recurrent, State
from elman.layers import LSTM
from elman.spec import Weights, weight_names
from elman.weights import ConversionError, build, convert
from elman.weights.files import Path, read_whole, write_whole


def load(path: Path) -> Model:
    """Read a model from a file of RTNeural's, ``.json``, or of Neural Amp Modeler's, ``.nam``.

    Raises ConversionError where it is no such file, or holds what a model here has not, by its
    name; OSError where it cannot be read.
    """
    read, _ = _format(path)
    try:
        return read(json.loads(read_whole(path)))
    except ConversionError:
        raise
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as e:
        raise ConversionError(f"{os.fspath(path)!r} holds no model that is known: {e!r}") from e


def write(model: Model, path: Path) -> list[str]:
    """Write a model as RTNeural's JSON or as a ``.nam``, by the end of the file's name.

    Returns sentences on what the file does not say. Raises ConversionError for what the format has
    not, by its name.
    """
    _, make = _format(path)
    content, notes = make(model)
    write_whole(path, json.dumps(content, allow_nan=False).encode())
    return notes


Content = dict[str, Any]
Made = tuple[Content, list[str]]


def _format(path: Path) -> tuple[Callable[[Content], Model], Callable[[Model], Made]]:
    for end, both in FORMATS.items():
        if os.fsdecode(path).endswith(end):
            return both
    raise ConversionError(f"{os.fspath(path)!r} must end in {' or '.join(FORMATS)}")


# RTNeural: Keras's layers, by name


def _read_rtneural(content: Content) -> Model:
    layers: list[Layer] = []
    size = content["in_shape"][-1]
    for k, given in enumerate(content["layers"]):
        title = f"rtneural: layer {k}"
        kind, activation = given["type"], given.get("activation", "")
        arrays = [np.array(w, np.float32) for w in given["weights"]]
        if kind in ("gru", "lstm"):
            if activation not in ("", "tanh"):
                raise ConversionError(
                    f"{title}: activation of a {kind} must be tanh, got {activation!r}"
                )
            layers.append(_of_keras(kind, arrays))
        elif kind in ("dense", "time-distributed-dense", "conv1d", "activation"):
            if kind == "conv1d":
                layers.append(_conv1d(title, given, *arrays))
            elif kind != "activation":
                layers.append(Linear(arrays[0].T, *arrays[1:]))
            if activation:
                if activation not in ACTIVATIONS:
                    raise ConversionError(f"{title}: activation {activation!r} is not known")
                layers.append(ACTIVATIONS[activation]())
        else:
            raise ConversionError(f"{title}: {kind!r} is not known")
    model = Model(layers)
    if model.input_size != size:
        raise ConversionError(f"rtneural: in_shape says {size} inputs, layers {model.input_size}")
    return model


def _conv1d(title: str, given: Content, kernel: Array, bias: Array) -> Conv1d:
    if given.get("groups", 1) != 1:
        raise ConversionError(f"{title}: groups must be 1, got {given['groups']}")
    return Conv1d(kernel.transpose(2, 1, 0), bias, int(given["dilation"][-1]))


_KERAS = ("kernel", "recurrent_kernel", "bias")


def _of_keras(kind: str, arrays: Sequence[Array]) -> Recurrent:
    tensors = {f"{kind}/{kind}_cell/{name}": a for name, a in zip(_KERAS, arrays, strict=True)}
    return cast(Recurrent, build(tensors, "keras", cell=False))


def _make_rtneural(model: Model) -> Made:
    layers: list[Content] = []
    size, notes = model.input_size, list[str]()
    if any(a.any() for state in model.initial for a in state):
        raise ConversionError(
            "rtneural: layers begin with zeros, and this model has initial states"
        )
    for layer in model.layers:
        if isinstance(layer, Recurrent):
            kind = layer.spec.cell.name
            if kind not in ("gru", "lstm") or layer.spec.proj_size:
                raise ConversionError(f"rtneural has no {layer!r}")
            for k in range(layer.spec.num_layers):
                size = layer.spec.hidden_size
                layers.append(_rtneural(kind, size, _keras_weights(layer, k), activation="tanh"))
            if kind == "lstm":
                notes.append(f"biases of {layer!r} are added up, as both sides would")
        elif isinstance(layer, Linear):
            size = layer.output_size
            layers.append(_rtneural("dense", size, [layer.weight.T, layer.bias]))
        elif isinstance(layer, Conv1d):
            size = layer.output_size
            sizes = {"kernel_size": [layer.kernel_size], "dilation": [layer.dilation], "groups": 1}
            weights = [layer.weight.transpose(2, 1, 0), layer.bias]
            layers.append(_rtneural("conv1d", size, weights, **sizes))
        else:
            layers.append(_rtneural("activation", size, [], activation=layer.name))
    return {"in_shape": [None, None, model.input_size], "layers": layers}, notes


def _rtneural(kind: str, size: int, weights: Sequence[Array], **more: Any) -> Content:
    shape = {"shape": [None, None, size], "weights": [w.tolist() for w in weights]}
    return {"type": kind, "activation": "", **shape, **more}


def _keras_weights(layer: Recurrent, k: int) -> list[Array]:
    """A layer of a stack as Keras has it; zeros where it has no biases."""
    w = _weights_of(layer, k)
    rows = len(w.w_ih)
    names = weight_names(0, 0)
    if w.b_ih is None:
        w = w._replace(b_ih=np.zeros(rows, np.float32), b_hh=np.zeros(rows, np.float32))
    tensors = {name: a for name, a in zip(names, w, strict=True) if a is not None}
    converted = convert(tensors, "torch", "keras", cell=False)
    return [next(a for name, a in converted.items() if name.endswith(f"/{end}")) for end in _KERAS]


def _weights_of(layer: Recurrent, k: int) -> Weights:
    named: dict[str, Any] = layer.state_dict()
    return Weights(*(named.get(name) for name in weight_names(k, 0)))


# Neural Amp Modeler: LSTMs of one size, and a linear head


def _read_nam(content: Content) -> Model:
    if content["architecture"] != "LSTM":
        raise ConversionError(
            f"nam: architecture {content['architecture']!r} is not known, but LSTM"
        )
    config = content["config"]
    D, H, K = (int(config[name]) for name in ("input_size", "hidden_size", "num_layers"))
    P = int(config.get("out_channels", 1))
    if int(config.get("in_channels", 1)) != D:
        raise ConversionError(f"nam: in_channels must be input_size = {D}, got {config}")
    numbers = np.array(content["weights"], np.float32)
    expected = sum(4 * H * ((H if k else D) + H + 1) + 2 * H for k in range(K)) + P * (H + 1)
    if min(D, H, K, P) < 1 or numbers.shape != (expected,):
        raise ConversionError(f"nam: {config} takes {expected} weights, got {numbers.size}")

    def take(*shape: int) -> Array:
        nonlocal numbers
        count = int(np.prod(shape))
        taken, numbers = numbers[:count], numbers[count:]
        return taken.reshape(shape)

    weights: dict[str, Array] = {}
    states: list[State] = []
    for k in range(K):
        size = H if k else D
        both, bias = take(4 * H, size + H), take(4 * H)
        each = both[:, :size], both[:, size:], bias, np.zeros_like(bias)
        weights.update(zip(weight_names(k, 0), each, strict=False))
        states.append((take(H), take(H)))
    lstm = LSTM(D, H, K)
    lstm.load_state_dict(weights)
    h_0, c_0 = (np.stack(a) for a in zip(*states, strict=True))
    return Model([lstm, Linear(take(P, H), take(P))], [(h_0, c_0)])


def _make_nam(model: Model) -> Made:
    *lstms, head = model.layers
    sizes = {layer.spec.hidden_size for layer in lstms if isinstance(layer, LSTM)}
    plain = all(isinstance(layer, LSTM) and not layer.spec.proj_size for layer in lstms)
    if not (plain and len(sizes) == 1 and isinstance(head, Linear)):
        raise ConversionError(f"nam holds LSTMs of one size and a Linear behind them, not {model}")
    numbers: list[Array] = []
    for layer, (h_0, c_0) in zip(cast(list[LSTM], lstms), model.initial, strict=False):
        for k in range(layer.spec.num_layers):
            w = _weights_of(layer, k)
            bias = np.zeros(len(w.w_ih), np.float32) if w.b_ih is None else w.b_ih + w.b_hh
            numbers += [np.concatenate([w.w_ih, w.w_hh], 1), bias, h_0[k], c_0[k]]
    numbers += [head.weight, head.bias]
    channels = {"in_channels": model.input_size, "out_channels": model.output_size}
    config = {
        "input_size": model.input_size,
        "hidden_size": sizes.pop(),
        "num_layers": (len(numbers) - 2) // 4,
        **{name: n for name, n in channels.items() if n != 1},
    }
    content = {
        "version": "0.5.4",
        "architecture": "LSTM",
        "config": config,
        "weights": np.concatenate([a.ravel() for a in numbers]).tolist(),
    }
    return content, ["no sample rate is in the file; a player takes its own"]


#: What reads and what makes a file's content, by the end of its name.
FORMATS = {".json": (_read_rtneural, _make_rtneural), ".nam": (_read_nam, _make_nam)}
