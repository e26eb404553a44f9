"""Layers of the PyTorch door as ONNX's own GRU and RNN nodes, while ``torch.onnx.export`` traces.

The exporter writes a node for every operator whose name begins with ``onnx::``: those below, which
compute what the node does, so that the exporter's ``verify=True`` has something to compare with.
Needs torch 2.8 or newer.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from elman.spec import Weights
from elman.torch.operators import run_scan
from elman.weights.frameworks import FRAMEWORKS, Form

_INPUTS = "Tensor X, Tensor W, Tensor R, Tensor? B, Tensor? sequence_lens, Tensor? initial_h"


def run_layer(
    layer: Any,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    k: int,
    x: Tensor,
    h_0: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Layer k of an RNN or GRU as one node: output (L, N, directions*H), h_n (directions, N, H).

    Parameters
    ----------
    layer : the module.
    weights : all of its weights in order, as the exporter sees them.
    lengths : integers (N,), or None.
    reset : must be None; RuntimeError if it is not.
    k, x, h_0 : which of its layers, (L, N, D), and (directions, N, H) or None for zeros.
    """
    name, (kind, _, nonlinearity) = layer._get_name(), layer.mode.partition("_")
    if reset is not None:
        raise RuntimeError(f"{name}: reset= cannot be exported; ONNX's {kind} has no such thing")
    directions = 2 if layer.bidirectional else 1
    each = directions * (4 if layer.bias else 2)
    own = slice(k * each, (k + 1) * each)
    W, R, B = _store(weights[own], layer._flat_weights[own], directions)
    kinds: dict[str, Any] = {
        "GRU": {"linear_before_reset": 1},
        "RNN": {"activations": [nonlinearity.title()] * directions},
    }
    Y, Y_h = getattr(torch.ops.onnx, kind).opset14(
        x,
        W,
        R,
        B,
        None if lengths is None else lengths.to(torch.int32),
        h_0,
        hidden_size=layer.hidden_size,
        direction="bidirectional" if layer.bidirectional else "forward",
        **kinds[kind],
    )
    if lengths is not None and h_0 is not None:  # ONNX has 0, not h_0, for a row without steps
        Y_h = torch.where((lengths == 0)[:, None], h_0, Y_h)
    return (Y.squeeze(1) if directions == 1 else Y.transpose(1, 2).flatten(2)), Y_h


def _store(
    traced: Sequence[Tensor], parameters: Sequence[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A node's W, R and B.

    As values, which the file then holds as they are, unless the weights are computed or given in
    place of the parameters; then as what the model computes.
    """
    if not _stand_for(traced, parameters):
        return _reorder(traced, directions)
    with _disable_current_modes():
        return _reorder([p.detach() for p in parameters], directions)


def _stand_for(traced: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether the exporter's tensors are these parameters, and not computed or given instead."""
    return all(
        isinstance(t, FakeTensor)
        and type(p) is torch.nn.Parameter
        and t.fake_mode.from_tensor(p, static_shapes=True) is t
        for t, p in zip(traced, parameters, strict=True)
    )


def _reorder(weights: Sequence[Tensor], directions: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """PyTorch's weights as W, R and B, with the rows in ONNX's order.

    ``frameworks.py`` knows that order; it is asked where the numbers of the rows go.
    """
    rows = np.arange(len(weights[1]))
    stored = _form(weights[1]).store(Weights(rows, rows, rows, rows + len(rows)))
    orders = [torch.tensor(order) for order in stored]
    each = len(weights) // directions
    of_direction = [weights[d * each : (d + 1) * each] for d in range(directions)]
    W, R = (torch.stack([w[i][orders[i]] for w in of_direction]) for i in range(2))
    if each == 2:
        return W, R, None
    return W, R, torch.stack([torch.cat([*w[2:]])[orders[2]] for w in of_direction])


def _form(w_hh: Tensor) -> Form:
    gates = w_hh.shape[-2] // w_hh.shape[-1]
    return next(form for form in FRAMEWORKS["onnx"].forms if len(form.cell.gates) == gates)


def _run_node(cell: str, X: Tensor, W: Tensor, R: Tensor, B: Tensor | None, *extent: Any) -> Any:
    """What the node computes: Y (L, directions, N, H) and Y_h (directions, N, H)."""
    sequence_lens, initial_h = extent
    biases = W.new_zeros(len(W), 2 * W.shape[1]) if B is None else B
    weights: list[Any] = []
    for parts in zip(W.numpy(), R.numpy(), biases.numpy(), strict=True):
        weights += map(torch.from_numpy, _form(R).restore(parts))
    weights += [None] * (8 - len(weights))
    output, Y_h = run_scan(cell, X, initial_h, *weights, sequence_lens, None, None)
    return output.unflatten(2, (len(W), -1)).transpose(1, 2).contiguous(), Y_h


def _run_gru(*inputs: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
    return _run_node("gru", *inputs)


def _run_rnn(*inputs: Any, activations: list[str], **attributes: Any) -> tuple[Tensor, Tensor]:
    return _run_node(f"rnn_{activations[0].lower()}", *inputs)


def _fake(X: Tensor, W: Tensor, *inputs: Any, hidden_size: int, **attributes: Any) -> Any:
    (L, N, _), H = X.shape, hidden_size
    return X.new_empty((L, len(W), N, H)), X.new_empty((len(W), N, H))


_library = torch.library.Library("onnx", "FRAGMENT")
for _kind, _run, _own in (
    ("GRU", _run_gru, "int linear_before_reset"),
    ("RNN", _run_rnn, "str[] activations"),
):
    _attributes = f"int hidden_size, str direction, {_own}"
    _library.define(f"{_kind}.opset14({_INPUTS}, *, {_attributes}) -> (Tensor Y, Tensor Y_h)")
    _library.impl(f"{_kind}.opset14", _run, "CPU")
    torch.library.register_fake(f"onnx::{_kind}.opset14", _fake, lib=_library)
