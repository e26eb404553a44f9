"""One layer of one or two directions, forward and backward, as operators of ``torch.library``.

``torch.ops.elman.layer`` and ``layer_backward`` run the engine on CPU tensors of float32 or
float64; weights may be bfloat16 or float16 where all else is float32. Fake tensors, autograd and
vmap are registered, so that torch.compile, torch.export and torch.func see through them.

Both also run M members at once, layers alike with weights of their own: then every tensor but
batch_sizes has a leading axis M, or several, results and kept values included.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack, is_legacy_batchedtensor

from elman import engine, scan
from elman.engine import Extent, Kept
from elman.paths import Paths
from elman.spec import CELLS, Weights

paths = Paths("kernel", "torch", "scan")
HALVES = (torch.bfloat16, torch.float16)

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
    f"layer({_INPUTS}, bool keep, bool recompute) -> "
    "(Tensor output, Tensor h_n, Tensor gates, Tensor states)"
)
_library.define(
    f"layer_backward({_INPUTS}, Tensor gates, Tensor states, Tensor? d_output, Tensor? d_h_n, "
    "bool need_x, bool need_weights) -> (Tensor d_x, Tensor d_h_0" + ", Tensor" * 8 + ")"
)


class _Inputs:
    """The arguments that both operators begin with, by name; tensors, or arrays."""

    def __init__(self, cell: str, *inputs: Any) -> None:
        self.cell = CELLS[cell]
        self.x, self.h_0 = inputs[:2]
        self.weights = inputs[2:10]
        self.lengths, self.reset, self.batch_sizes = self.extent = inputs[10:13]
        self.directions = 1 if self.weights[4] is None else 2
        self.hidden_size = self.weights[1].shape[-1]
        self.members = self.weights[1].shape[:-2]  # (), (M,) or more

    @property
    def by_direction(self) -> list[Weights]:
        return [Weights(*self.weights[4 * d : 4 * d + 4]) for d in range(self.directions)]

    @property
    def state_shape(self) -> tuple[Any, ...]:
        # Packed input tells its batch by data alone, and so always comes with h_0.
        batch = (self.x if self.batch_sizes is None else self.h_0).shape[-2]
        return (*self.members, self.directions, batch, self.hidden_size)

    @property
    def rows(self) -> Any:
        return self.x.shape[-2] * (self.x.shape[-3] if self.batch_sizes is None else 1)

    def packed(self) -> Any:
        weights = self.weights[: 4 * self.directions]
        return engine.pack(self.cell, weights if _IS_LENT else map(_lend_weight, weights))


# Torch before its DLPack 1.2 cannot lend a tensor as it is.
_IS_LENT = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _lend(tensors: Sequence[Any]) -> Sequence[Any]:
    """All but the weights for the engine, whether or not they need gradients."""
    if _IS_LENT:
        return tensors
    return [t if t is None or 2 <= n < 10 else t.numpy(force=True) for n, t in enumerate(tensors)]


def _present(cell: str, t: Tensor | None) -> Tensor | None:
    """The tensor, or zeros in memory for torch's zeros that take none."""
    if t is None or t.numel() == 0:
        return t
    if t._is_zerotensor():  # pyright: ignore[reportPrivateUsage]
        return t.clone()
    if t.untyped_storage().data_ptr():
        return t
    # Its storage was resized, by which FSDP, for one, frees a weight.
    title = "GRU" if cell == "gru" else "RNN"
    raise RuntimeError(f"{title}: the memory of a tensor of {tuple(t.shape)} has been freed")


def _lend_weight(weight: Tensor | None) -> Any:
    """A weight for ``engine.pack``, in any type, and only for the call.

    A NumPy view would forbid its storage to be resized ever after, by which FSDP frees it.
    """
    return weight if _IS_LENT or weight is None else torch._C._to_dlpack(weight)  # pyright: ignore[reportPrivateUsage]


def _tensors(arrays: Sequence[Any]) -> list[Any]:
    return [None if a is None else torch.from_numpy(a) for a in arrays]


def _filled(tensors: Sequence[Any], like: Tensor) -> tuple[Tensor, ...]:
    """Results as an operator has to give them, which knows no None."""
    return tuple(like.new_empty(0) if t is None else t for t in tensors)


def _one_by_one(
    run: Callable[..., Sequence[Any]], cell: str, arrays: Sequence[Any], *options: bool
) -> Sequence[Any]:
    """Every member through the engine, where it finds its weights in the cache.

    So each has the bits that it has alone. The other way, one batched product a step for all
    members, was slower at every size: 3 to 70 times, for 8 to 64 members of 16 to 128 units.
    """
    results: list[Sequence[Any]] = []
    for m in range(len(arrays[0])):
        member = [a if n == _BATCH_SIZES or a is None else a[m] for n, a in enumerate(arrays)]
        results.append(run(cell, member, *options))
    columns = zip(*results, strict=True)
    return [None if column[0] is None else np.stack(column) for column in columns]


def _layer(*arguments: Any) -> tuple[Tensor, ...]:
    return _filled(_run_layer(*arguments), arguments[1])


def _run_layer(cell: str, *arguments: Any) -> list[Any]:
    *tensors, keep, recompute = arguments
    paths.counts["kernel"] += 1
    try:
        return _tensors(_with_memory(_forward, cell, tensors, keep, recompute))
    except (MemoryError, ValueError) as e:  # ValueError: lengths out of range
        raise RuntimeError(str(e)) from None


def _with_memory(run: Any, cell: str, tensors: Sequence[Any], *options: bool) -> Sequence[Any]:
    try:
        return run(cell, _lend(tensors), *options)
    except BufferError:  # of the engine, which has found one without
        return run(cell, _lend([_present(cell, t) for t in tensors]), *options)


def _forward(cell: str, arrays: Sequence[Any], keep: bool, recompute: bool) -> Sequence[Any]:
    i = _Inputs(cell, *arrays)
    if i.members:
        return _one_by_one(_forward, cell, arrays, keep, recompute)
    threads = torch.get_num_threads()
    output, h_n, kept = engine.forward(
        i.cell, i.packed(), i.x, i.h_0, Extent(*i.extent), threads, keep, recompute
    )
    return output, h_n, *(kept or (None, None))


def _layer_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep, recompute = arguments
    i = _Inputs(*inputs)
    H, d = i.hidden_size, i.directions
    keep_gates = keep and not recompute
    return (
        i.x.new_empty((*i.x.shape[:-1], d * H)),
        i.x.new_empty(i.state_shape),
        i.x.new_empty((*i.members, d, i.rows, i.cell.kept * H) if keep_gates else (0,)),
        i.x.new_empty((*i.members, d, i.rows, H) if keep else (0,)),
    )


def _layer_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return _filled(_run_layer_backward(*arguments), arguments[1])


def _run_layer_backward(cell: str, *arguments: Any) -> list[Any]:
    *tensors, need_x, need_weights = arguments
    results = _tensors(_with_memory(_backward, cell, tensors, need_x, need_weights))
    if need_weights and tensors[2].dtype in HALVES:
        results[2:] = [d if d is None else d.to(tensors[2].dtype) for d in results[2:]]
    return results


def _backward(cell: str, arrays: Sequence[Any], need_x: bool, need_weights: bool) -> Sequence[Any]:
    *inputs, gates, states, d_output, d_h_n = arrays
    i = _Inputs(cell, *inputs)
    if i.members:
        return _one_by_one(_backward, cell, arrays, need_x, need_weights)
    d_x, d_h_0, d_weights = engine.backward(
        i.packed(),
        [None if w is None else w.shape for w in i.weights[: 4 * i.directions]],
        i.x,
        Kept(gates if len(gates.shape) > 1 else None, states),
        d_output,
        d_h_n,
        Extent(*i.extent),
        torch.get_num_threads(),
        need_x,
        need_weights,
    )
    d_weights = d_weights or []
    return [d_x, d_h_0, *d_weights, *[None] * (8 - len(d_weights))]


def _layer_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, _, _, need_x, need_weights = arguments
    i = _Inputs(*inputs)
    d_x = i.x.new_empty(i.x.shape if need_x else (0,))
    d_weights = (
        i.x.new_empty((0,)) if w is None or not need_weights else w.new_empty(w.shape)
        for w in i.weights
    )
    return d_x, i.x.new_empty(i.state_shape), *d_weights


# --- Gradients -----------------------------------------------------------------------------------


def _save_layer(ctx: Any, inputs: Any, output: Any) -> None:
    cell, *tensors, _, _ = inputs
    _, _, gates, states = output
    ctx.mark_non_differentiable(gates, states)
    ctx.set_materialize_grads(False)
    ctx.cell = cell
    ctx.save_for_backward(*tensors, gates, states)


def _differentiate_layer(ctx: Any, d_output: Any, d_h_n: Any, *_: Any) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[1:11]  # x, h_0, the weights
    gradients = _run_backward(
        ctx.cell, *ctx.saved_tensors, d_output, d_h_n, needs[0], any(needs[2:])
    )
    wanted = (d if need else None for d, need in zip(gradients, needs, strict=True))
    return (None, *wanted, None, None, None, None, None)


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    cell, *tensors, _, _, d_output, d_h_n, need_x, need_weights = inputs
    ctx.set_materialize_grads(False)
    ctx.cell = cell
    ctx.given = [need_x, True] + [need_weights and w is not None for w in tensors[2:10]]
    ctx.save_for_backward(*tensors, d_output, d_h_n)


def _differentiate_backward(ctx: Any, *dd: Tensor | None) -> tuple[Any, ...]:
    """Double backward: the first one once more, through the loop on tensors."""
    *saved, d_output, d_h_n = ctx.saved_tensors
    i = _Inputs(ctx.cell, *saved)
    x, H = i.x, i.hidden_size
    if saved[1] is None:
        saved[1] = x.new_zeros(i.state_shape)
    if d_output is None:
        d_output = x.new_zeros((*x.shape[:-1], i.directions * H))
    if d_h_n is None:
        d_h_n = x.new_zeros(i.state_shape)
    places = [n for n, t in enumerate(saved[:10]) if t is not None]  # of x, h_0, the weights
    variables = [saved[n] for n in places]

    def forward(*variables: Tensor) -> tuple[Tensor, Tensor]:
        inputs = list(saved)
        for n, variable in zip(places, variables, strict=True):
            inputs[n] = variable
        return run_scan(ctx.cell, *inputs)

    def backward(variables: list[Tensor], *cotangents: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(forward, *variables)[1](cotangents)

    first: Any
    vjp: Any
    first, vjp = torch.func.vjp(backward, variables, d_output, d_h_n)  # pyright: ignore[reportAssignmentType]
    given = [dd[n] if ctx.given[n] else None for n in places]
    pairs = zip(given, first, strict=True)
    second, *others = vjp(tuple(torch.zeros_like(f) if d is None else d for d, f in pairs))
    gradients = dict(zip([*places, 15, 16], [*second, *others], strict=True))
    needs = ctx.needs_input_grad[1:]
    return (None, *(gradients.get(n) if need else None for n, need in enumerate(needs)))


# --- Calls ---------------------------------------------------------------------------------------


class _Layer(torch.autograd.Function):
    """``elman::layer`` and its gradient for torch.func's transforms."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.elman.layer(*arguments)

    setup_context = staticmethod(_save_layer)
    backward = staticmethod(_differentiate_layer)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _batch_layer(_Layer.apply, info.batch_size, in_dims, arguments)


class _LayerBackward(torch.autograd.Function):
    """``elman::layer_backward`` and its gradient for torch.func's transforms."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.elman.layer_backward(*arguments)

    setup_context = staticmethod(_save_backward)
    backward = staticmethod(_differentiate_backward)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return _batch_backward(_LayerBackward.apply, info.batch_size, in_dims, arguments)


class _DirectLayer(torch.autograd.Function):
    """A layer and its gradient with nothing between them and autograd."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        output, h_n, gates, states = _run_layer(*arguments)
        ctx.set_materialize_grads(False)
        ctx.cell = arguments[0]
        gates = states.new_empty(0) if gates is None else gates
        ctx.save_for_backward(*arguments[1:-2], gates, states)
        return output, h_n

    backward = staticmethod(_differentiate_layer)


def run_kernel(*arguments: Any) -> Any:
    """``elman::layer``: output and h_n.

    By way of the dispatcher only where somebody watches: it takes longer than a small layer.
    """
    if is_transformed():  # and members' gates are all kept
        return _Layer.apply(*arguments[:-1], False)[:2]
    if _is_watched(arguments[1]) or _is_one_negated(arguments[1:11]):
        return torch.ops.elman.layer(*arguments)[:2]
    *_, keep, _ = arguments
    return _DirectLayer.apply(*arguments) if keep else _run_layer(*arguments)[:2]


def _run_backward(*arguments: Any) -> Sequence[Any]:
    """``elman::layer_backward``."""
    if is_transformed():
        return _LayerBackward.apply(*arguments)
    *tensors, d_output, d_h_n = arguments[1:-2]
    if (
        torch.is_grad_enabled()
        or _is_watched(tensors[0], d_output, d_h_n)
        or _is_one_negated((*tensors[:10], d_output, d_h_n))
    ):
        return torch.ops.elman.layer_backward(*arguments)
    return _run_layer_backward(*arguments)


def is_transformed(kind: Any = None) -> bool:
    """Whether a transform of torch.func is at work, or one of that kind, outside of a compiler."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        return False
    return kind is None or any(t.key() == kind for t in get_interpreter_stack())


def _is_watched(*tensors: Tensor | None) -> bool:
    """Whether operators are watched: by a compiler, a tracer, a mode, or a kind of tensor."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore[reportPrivateUsage]
        or any(map(_is_odd, tensors))
    )


def _is_odd(t: Tensor | None) -> bool:
    # Of the old batched kind are cotangents of torch.autograd.grad with is_grads_batched=True.
    return t is not None and (type(t) is not Tensor or is_legacy_batchedtensor(t))


def _is_one_negated(tensors: Sequence[Tensor | None]) -> bool:
    """Whether one lies in memory with the other sign, as a conjugate's imaginary part does.

    The dispatcher knows of that, the engine does not.
    """
    for t in tensors:  # noqa: SIM110 (a generator takes a microsecond)
        if t is not None and t.is_neg():
            return True
    return False


def run_scan(*inputs: Any) -> tuple[Tensor, Tensor]:
    """What ``elman::layer`` computes, by the loop of ``elman.scan``: output and h_n.

    Any device and dtype, any of torch's transforms.
    """
    i = _Inputs(*inputs)
    if i.members:
        members = (None, *(None if t is None or t is i.batch_sizes else 0 for t in inputs[1:]))
        return torch.func.vmap(run_scan, members)(*inputs)
    x, lengths, rows = i.x, i.lengths, None
    if i.batch_sizes is not None:
        inside = torch.arange(i.state_shape[1]) < i.batch_sizes[:, None]
        lengths = inside.sum(0).to(x.device)
        # Which of (L, N) the packed rows are.
        rows = inside.flatten().int().argsort(descending=True, stable=True)[: x.shape[0]]
        rows = rows.to(x.device)
        padded = x.new_zeros((inside.numel(), x.shape[-1])).index_copy(0, rows, x)
        x = padded.unflatten(0, inside.shape)
    h_0 = x.new_zeros(i.state_shape) if i.h_0 is None else i.h_0
    weights = [Weights(*(w if w is None else w.to(x.dtype) for w in ws)) for ws in i.by_direction]
    output, h_n = scan.layer(i.cell, x, h_0, weights, xp=torch, lengths=lengths, reset=i.reset)
    return output if rows is None else output.flatten(0, 1)[rows], h_n


# --- vmap ----------------------------------------------------------------------------------------

# Places among the tensor arguments.
_OF_WEIGHTS, _LENGTHS, _BATCH_SIZES = slice(2, 10), 10, 12
# How many axes each tensor has behind its batch axis; weights and batch_sizes have none.
_BEHIND = (1, 1, *[None] * 8, 0, 0, None, 1, 1, 1, 1)


def _batch_layer(run: Any, size: int, in_dims: Any, arguments: Sequence[Any]) -> Any:
    """The rule of vmap for ``elman::layer``, to be run by `run`."""
    cell, *tensors, keep, recompute = arguments
    dims = in_dims[1:-2]
    # Kept values lie in the order of the lengths of all rows of a call.
    apart = keep and dims[_LENGTHS] is not None
    batch = _batch_members if apart or _any(dims[_OF_WEIGHTS]) else _batch_rows
    return batch(run, size, cell, tensors, dims, keep, recompute)


def _batch_backward(run: Any, size: int, in_dims: Any, arguments: Sequence[Any]) -> Any:
    """The rule of vmap for ``elman::layer_backward``, to be run by `run`."""
    cell, *tensors, need_x, need_weights = arguments
    dims = in_dims[1:-2]
    apart = need_weights or dims[_LENGTHS] is not None
    batch = _batch_members if apart or _any(dims[_OF_WEIGHTS]) else _batch_rows
    return batch(run, size, cell, tensors, dims, need_x, need_weights)


def _any(dims: Sequence[int | None]) -> bool:
    return any(dim is not None for dim in dims)


def _lead(tensors: Sequence[Any], dims: Sequence[int | None], size: int) -> list[Any]:
    """Every tensor with the mapped axis in front, but batch_sizes, which no map changes."""

    def lead(t: Tensor, dim: int | None) -> Tensor:
        return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)

    return [
        t if t is None or n == _BATCH_SIZES else lead(t, dim)
        for n, (t, dim) in enumerate(zip(tensors, dims, strict=True))
    ]


def _batch_rows(
    run: Any, size: int, cell: str, tensors: list[Any], dims: Any, *options: bool
) -> Any:
    """Calls that share their weights: their rows are rows of one batch, and keep their bits."""
    rows = list(tensors)
    for n, (t, behind) in enumerate(zip(_lead(tensors, dims, size), _BEHIND, strict=False)):
        if t is not None and behind is not None:
            rows[n] = t.movedim(0, -1 - behind).flatten(-2 - behind, -1 - behind)
    if rows[_BATCH_SIZES] is not None:
        rows[_BATCH_SIZES] = rows[_BATCH_SIZES] * size
    results = run(cell, *rows, *options)
    results = [r if r.dim() == 1 else r.unflatten(-2, (-1, size)) for r in results]  # 1: absent
    return tuple(results), tuple(None if r.dim() == 1 else r.dim() - 2 for r in results)


def _batch_members(
    run: Any, size: int, cell: str, tensors: list[Any], dims: Any, *options: bool
) -> Any:
    """Calls with weights, or gradients of weights, of their own."""
    results = run(cell, *_lead(tensors, dims, size), *options)
    return tuple(results), tuple(None if r.dim() == 1 else 0 for r in results)


# --- Registration --------------------------------------------------------------------------------

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


def _layer_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    return _batch_layer(torch.ops.elman.layer, info.batch_size, in_dims, arguments)


def _layer_backward_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    return _batch_backward(torch.ops.elman.layer_backward, info.batch_size, in_dims, arguments)


torch.library.register_vmap("elman::layer", _layer_vmap, lib=_library)
torch.library.register_vmap("elman::layer_backward", _layer_backward_vmap, lib=_library)
