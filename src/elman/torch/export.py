"""Layers of the PyTorch package as ONNX's own nodes, while ``torch.onnx.export`` traces.

The exporter writes a node for every operator whose name begins with ``onnx::``: those below, which
compute what the node does, so that the exporter's ``verify=True`` has something to compare with.
Needs torch 2.8 or newer.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from elman.spec import WEIGHTS, Cell, Weights
from elman.torch.modules import cell_of
from elman.torch.operators import join, run_scan, split
from elman.weights.frameworks import FRAMEWORKS, KINDS, Form
from elman.weights.onnx import attributes

# Of both GRUs they lie alike.
_FORMS: dict[str, Form] = {form.kind: form for form in FRAMEWORKS["onnx"].forms}


def run_layer(
    layer: Any,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    k: int,
    x: Tensor,
    h_0: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Layer k as one node: output (L, N, directions*H), h_n (directions, N, S).

    Parameters
    ----------
    layer : the module.
    weights : all of its weights in order, as the exporter sees them.
    lengths : integers (N,), or None.
    reset : must be None; RuntimeError if it is not, or if the layer has a projection.
    k, x, h_0 : which of its layers, (L, N, D), and (directions, N, S) or None for zeros.
    """
    name, cell = layer._get_name(), cell_of(layer)
    kind, nonlinearity = cell.kind, getattr(layer, "nonlinearity", "")
    for option, given in (("reset", reset is not None), ("proj_size", layer.proj_size > 0)):
        if given:
            raise RuntimeError(
                f"{name}: {option}= cannot be exported; ONNX's {kind} has no such thing"
            )
    directions, sizes = 2 if layer.bidirectional else 1, _sizes(cell, layer.hidden_size)
    each = len(weights) // layer.num_layers
    own = slice(k * each, (k + 1) * each)
    W, R, B = _store(_FORMS[kind], weights[own], layer._flat_weights[own], directions)
    told: dict[str, Any] = {**attributes(cell)}
    if nonlinearity:
        told["activations"] = [nonlinearity.title()] * directions
    Y, *finals = getattr(torch.ops.onnx, kind).opset14(
        x,
        W,
        R,
        B,
        None if lengths is None else lengths.to(torch.int32),
        *([None] * len(sizes) if h_0 is None else split(h_0, sizes)),
        hidden_size=layer.hidden_size,
        direction="bidirectional" if layer.bidirectional else "forward",
        **told,
    )
    h_n: Any = join(finals)
    if lengths is not None and h_0 is not None:  # ONNX has 0, not h_0, for a row without steps
        h_n = torch.where((lengths == 0)[:, None], h_0, h_n)
    return (Y.squeeze(1) if directions == 1 else Y.transpose(1, 2).flatten(2)), h_n


def _store(
    form: Form, traced: Sequence[Tensor], parameters: Sequence[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A node's W, R and B.

    As values, which the file then holds as they are, unless the weights are computed or given in
    place of the parameters; then as what the model computes.
    """
    if not _stand_for(traced, parameters):
        return _reorder(form, traced, directions)
    with _disable_current_modes():
        return _reorder(form, [p.detach() for p in parameters], directions)


def _stand_for(traced: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether the exporter's tensors are these parameters, and not computed or given instead."""
    return all(
        isinstance(t, FakeTensor)
        and type(p) is torch.nn.Parameter
        and t.fake_mode.from_tensor(p, static_shapes=True) is t
        for t, p in zip(traced, parameters, strict=True)
    )


def _reorder(
    form: Form, weights: Sequence[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """PyTorch's weights as W, R and B, with the rows in ONNX's order.

    ``frameworks.py`` knows that order; it is asked where the numbers of the rows go.
    """
    rows = np.arange(len(weights[1]))
    stored = form.store(Weights(rows, rows, rows, rows + len(rows)))
    orders = [torch.tensor(order) for order in stored]
    each = len(weights) // directions
    of_direction = [weights[d * each : (d + 1) * each] for d in range(directions)]
    W, R = (torch.stack([w[i][orders[i]] for w in of_direction]) for i in range(2))
    if each == 2:
        return W, R, None
    return W, R, torch.stack([torch.cat([*w[2:]])[orders[2]] for w in of_direction])


def _sizes(cell: Cell, hidden_size: int) -> Sequence[int]:
    return [hidden_size] * len(cell.states)


def _run(
    cell: Cell,
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None,
    sequence_lens: Tensor | None,
    *initial: Tensor | None,
    activations: Sequence[str] = (),
    linear_before_reset: int = 1,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """What the node computes: Y (L, directions, N, H), and Y_h, Y_c (directions, N, H)."""
    biases = W.new_zeros(len(W), 2 * W.shape[1]) if B is None else B
    weights: list[Any] = []
    for parts in zip(W.numpy(), R.numpy(), biases.numpy(), strict=True):
        restored = _FORMS[cell.kind].restore(parts)
        weights += [None if w is None else torch.from_numpy(w) for w in restored]
    weights += [None] * (2 * len(WEIGHTS) - len(weights))
    h_0 = join([state for state in initial if state is not None])
    name = "_".join([cell.kind, *activations[:1]]).lower()
    name += "" if linear_before_reset else "_reset_before"
    output, h_n = run_scan(name, X, h_0, *weights, sequence_lens, None, None)
    Y = output.unflatten(2, (len(W), -1)).transpose(1, 2).contiguous()
    return Y, *split(h_n, _sizes(cell, R.shape[-1]))


def _fake(
    cell: Cell, X: Tensor, W: Tensor, *inputs: Any, hidden_size: int, **attributes: Any
) -> tuple[Tensor, ...]:
    (L, N, _), H = X.shape, hidden_size
    finals = [X.new_empty((len(W), N, size)) for size in _sizes(cell, H)]
    return X.new_empty((L, len(W), N, H)), *finals


_library = torch.library.Library("onnx", "FRAGMENT")


def _define(cell: Cell) -> None:
    """The node of a kind of cell as an operator."""
    name = f"{cell.kind}.opset14"
    inputs = ["Tensor X", "Tensor W", "Tensor R", "Tensor? B", "Tensor? sequence_lens"]
    inputs += [f"Tensor? initial_{state}" for state in cell.states]
    options = ["int hidden_size", "str direction"]
    options += [f"int {attribute}" for attribute in attributes(cell)]
    if "_" in cell.name:  # with a nonlinearity of several
        options.append("str[] activations")
    outputs = ["Tensor Y", *(f"Tensor Y_{state}" for state in cell.states)]
    _library.define(
        f"{name}({', '.join(inputs)}, *, {', '.join(options)}) -> ({', '.join(outputs)})"
    )
    _library.impl(name, partial(_run, cell), "CPU")
    torch.library.register_fake(f"onnx::{name}", partial(_fake, cell), lib=_library)


for _cell in KINDS.values():
    _define(_cell)
