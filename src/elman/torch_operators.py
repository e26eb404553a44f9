"""One layer of one or two directions, forward and backward, as operators of ``torch.library``.

``torch.ops.elman.layer`` and ``layer_backward`` run the engine on CPU tensors of float32 or
float64; fake tensors and autograd are registered, so that torch.compile and torch.export see
through them.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from elman import engine, scan
from elman.engine import Extent, Kept
from elman.paths import Paths
from elman.spec import CELLS, Weights

paths = Paths("kernel", "torch", "scan")

# Absent weights and absent gradients are None going in, and tensors without elements coming out.
_WEIGHTS = ", ".join(
    f"{kind} {name}{suffix}"
    for suffix, kinds in (("", "Tensor Tensor Tensor? Tensor?"), ("_reverse", "Tensor? " * 4))
    for kind, name in zip(kinds.split(), ("w_ih", "w_hh", "b_ih", "b_hh"), strict=True)
)
_INPUTS = (
    f"str cell, Tensor x, Tensor? h_0, {_WEIGHTS}, "
    "Tensor? lengths, Tensor? reset, Tensor? batch_sizes"
)
_library = torch.library.Library("elman", "DEF")
_library.define(
    f"layer({_INPUTS}, bool keep) -> (Tensor output, Tensor h_n, Tensor gates, Tensor states)"
)
_library.define(
    f"layer_backward({_INPUTS}, Tensor gates, Tensor states, Tensor? d_output, Tensor? d_h_n, "
    "bool need_x, bool need_weights) -> (Tensor d_x, Tensor d_h_0" + ", Tensor" * 8 + ")"
)


class _Inputs:
    """The arguments that both operators begin with, by name."""

    def __init__(self, *inputs: Any) -> None:
        self.cell = CELLS[inputs[0]]
        self.x, self.h_0 = inputs[1:3]
        self.weights = inputs[3:11]
        self.lengths, self.reset, self.batch_sizes = self.extent = inputs[11:14]
        self.directions = 1 if self.weights[4] is None else 2
        self.hidden_size = self.weights[1].shape[1]

    @property
    def by_direction(self) -> list[Weights]:
        return [Weights(*self.weights[4 * d : 4 * d + 4]) for d in range(self.directions)]

    @property
    def state_shape(self) -> tuple[Any, ...]:
        # Packed input tells its batch by data alone, and so always comes with h_0.
        batch = self.x.shape[1] if self.batch_sizes is None else self.h_0.shape[1]
        return (self.directions, batch, self.hidden_size)

    @property
    def rows(self) -> Any:
        return self.x.shape[0] * (self.x.shape[1] if self.batch_sizes is None else 1)

    def packed(self) -> Any:
        arrays = (_array(w) for w in self.weights[: 4 * self.directions])
        return engine.pack(self.cell, list(arrays))


def _array(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    if type(tensor) is Parameter and distributed.is_available() and distributed.is_initialized():
        # FSDP frees weights between calls, which numpy() would forbid once and for all.
        return np.from_dlpack(_Loan(tensor.detach()))
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


class _Loan:
    """A tensor on the CPU, for ``np.from_dlpack``."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return torch._C._to_dlpack(self.tensor)  # pyright: ignore[reportPrivateUsage]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _layer(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep = arguments
    i = _Inputs(*inputs)
    paths.counts["kernel"] += 1
    try:
        output, h_n, kept = engine.forward(
            i.cell,
            i.packed(),
            _array(i.x),
            _array(i.h_0),
            Extent(*map(_array, i.extent)),
            torch.get_num_threads(),
            keep,
        )
    except ValueError as e:  # lengths out of range
        raise RuntimeError(str(e)) from None
    gates, states = map(torch.from_numpy, kept) if kept else (i.x.new_empty(0), i.x.new_empty(0))
    return torch.from_numpy(output), torch.from_numpy(h_n), gates, states


def _layer_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep = arguments
    i = _Inputs(*inputs)
    H, d = i.hidden_size, i.directions
    return (
        i.x.new_empty((*i.x.shape[:-1], d * H)),
        i.x.new_empty(i.state_shape),
        i.x.new_empty((d, i.rows, i.cell.kept * H) if keep else (0,)),
        i.x.new_empty((d, i.rows, H) if keep else (0,)),
    )


def _layer_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, gates, states, d_output, d_h_n, need_x, need_weights = arguments
    i = _Inputs(*inputs)
    d_x, d_h_0, d_weights = engine.backward(
        i.packed(),
        [None if w is None else tuple(w.shape) for w in i.weights[: 4 * i.directions]],
        _array(i.x),
        Kept(_array(gates), _array(states)),
        _array(d_output),
        _array(d_h_n),
        Extent(*map(_array, i.extent)),
        torch.get_num_threads(),
        need_x,
        need_weights,
    )
    d_weights = d_weights or []
    gradients = [d_x, d_h_0, *d_weights, *[None] * (8 - len(d_weights))]
    return tuple(i.x.new_empty(0) if d is None else torch.from_numpy(d) for d in gradients)


def _layer_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, _, _, need_x, need_weights = arguments
    i = _Inputs(*inputs)
    shapes = [None if w is None or not need_weights else w.shape for w in i.weights]
    shapes = [i.x.shape if need_x else None, i.state_shape, *shapes]
    return tuple(i.x.new_empty((0,) if shape is None else shape) for shape in shapes)


# --- Gradients -----------------------------------------------------------------------------------


def _save_layer(ctx: Any, inputs: Any, output: Any) -> None:
    cell, *tensors, _ = inputs
    _, _, gates, states = output
    ctx.mark_non_differentiable(gates, states)
    ctx.set_materialize_grads(False)
    ctx.cell = cell
    ctx.save_for_backward(*tensors, gates, states)


def _differentiate_layer(ctx: Any, d_output: Any, d_h_n: Any, *_: Any) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[1:11]  # x, h_0, the weights
    gradients = torch.ops.elman.layer_backward(
        ctx.cell, *ctx.saved_tensors, d_output, d_h_n, needs[0], any(needs[2:])
    )
    wanted = (d if need else None for d, need in zip(gradients, needs, strict=True))
    return (None, *wanted, None, None, None, None)


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    cell, *tensors, _, _, d_output, d_h_n, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.cell = cell
    ctx.save_for_backward(*tensors, d_output, d_h_n)


def _differentiate_backward(ctx: Any, *dd: Tensor | None) -> tuple[Any, ...]:
    """Double backward: the first one once more, through the loop on tensors."""
    *saved, d_output, d_h_n = ctx.saved_tensors
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        if saved[1] is None:
            saved[1] = saved[0].new_zeros(_Inputs(ctx.cell, *saved).state_shape)
        variables = [_fresh(t) for t in saved[:10]]  # x, h_0, the weights
        results = run_scan(ctx.cell, *variables, *saved[10:])
        pairs = zip(results, (d_output, d_h_n), strict=True)
        cotangents = [_fresh(torch.zeros_like(r) if d is None else d) for r, d in pairs]
        first = _gradients(results, variables, cotangents, create_graph=True)
        second = _gradients(first, [*variables, *cotangents], dd, create_graph=higher)
    needs = (*ctx.needs_input_grad[1:11], *ctx.needs_input_grad[16:18])
    second = [d if need else None for d, need in zip(second, needs, strict=True)]
    return (None, *second[:10], *[None] * 5, *second[10:], None, None)


def _fresh(tensor: Tensor | None) -> Any:
    """A new node in front of the tensor, on which no other gradient depends."""
    if tensor is None:
        return None
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _gradients(outputs: Any, inputs: Any, cotangents: Any, create_graph: bool) -> list[Any]:
    """``torch.autograd.grad`` where any of the tensors may be None."""
    pairs = zip(outputs, cotangents, strict=True)
    pairs = [(o, d) for o, d in pairs if o is not None and d is not None]
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        [i for i in inputs if i is not None],
        [d for _, d in pairs],
        create_graph=create_graph,
        allow_unused=True,
    )
    gradients = iter(found)
    return [None if i is None else next(gradients) for i in inputs]


class _Layer(torch.autograd.Function):
    """The operator and its gradient, without the dispatcher on the way there."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        results = _layer(*arguments)
        _save_layer(ctx, arguments, results)
        return results

    backward = staticmethod(_differentiate_layer)


def run_kernel(*arguments: Any) -> Any:
    """``elman::layer``: output and h_n.

    Where nobody records the call, its functions are called as they are: the dispatcher takes longer
    than a small layer.
    """
    if _is_recorded(arguments[1]):
        return torch.ops.elman.layer(*arguments)[:2]
    *_, keep = arguments
    return (_Layer.apply if keep else _layer)(*arguments)[:2]


def _is_recorded(tensor: Tensor) -> bool:
    """Whether operators are watched: by a compiler, a tracer, a mode, or a kind of tensor."""
    return (
        type(tensor) is not Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore[reportPrivateUsage]
    )


def run_scan(*inputs: Any) -> tuple[Tensor, Tensor]:
    """What ``elman::layer`` computes, by the loop of ``elman.scan``: output and h_n.

    Any device and dtype, any of torch's transforms.
    """
    i = _Inputs(*inputs)
    x, lengths, inside = i.x, i.lengths, None
    if i.batch_sizes is not None:
        inside = torch.arange(i.state_shape[1]) < i.batch_sizes[:, None]
        lengths = inside.sum(0).to(x.device)
        inside = inside.to(x.device)
        x = x.new_zeros((*inside.shape, x.shape[-1])).masked_scatter(inside[..., None], x)
    h_0 = x.new_zeros(i.state_shape) if i.h_0 is None else i.h_0
    output, h_n = scan.layer(
        i.cell, x, h_0, i.by_direction, xp=torch, lengths=lengths, reset=i.reset
    )
    return output if inside is None else output[inside], h_n


for _name, _run, _fake, _differentiate, _save in (
    ("layer", _layer, _layer_fake, _differentiate_layer, _save_layer),
    (
        "layer_backward",
        _layer_backward,
        _layer_backward_fake,
        _differentiate_backward,
        _save_backward,
    ),
):
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"elman::{_name}", _fake, lib=_library)
    torch.library.register_autograd(
        f"elman::{_name}", _differentiate, setup_context=_save, lib=_library
    )
