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

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack, is_legacy_batchedtensor
from torch.utils.flop_counter import register_flop_formula

from elman import engine, scan, stack
from elman.engine import Extent, Kept
from elman.paths import Paths
from elman.spec import CELLS, Weights

paths = Paths("kernel", "torch", "scan")
HALVES = (torch.bfloat16, torch.float16)


class Field(NamedTuple):
    """A tensor among the operators' arguments.

    Attributes
    ----------
    type : in their schemas. Absent weights and absent gradients are None going in, and tensors
        without elements coming out.
    behind : how many axes lie behind that of the rows; None where there is no such axis.
    """

    name: str
    type: str
    behind: int | None = None


def _weights(suffix: str) -> list[Field]:
    def kind(name: str) -> str:
        return "Tensor?" if suffix or name in Weights._field_defaults else "Tensor"

    return [Field(name + suffix, kind(name)) for name in Weights._fields]


# What the operators take behind the cell's name, ``layer`` as far as batch_sizes.
_FIELDS = (
    Field("x", "Tensor", 1),
    Field("h_0", "Tensor?", 1),
    *_weights(""),
    *_weights("_reverse"),
    Field("lengths", "Tensor?", 0),
    Field("reset", "Tensor?", 0),
    Field("batch_sizes", "Tensor?"),
    Field("gates", "Tensor", 1),
    Field("states", "Tensor", 1),
    Field("d_output", "Tensor?", 1),
    Field("d_h_n", "Tensor?", 1),
)
_PLACES = {field.name: n for n, field in enumerate(_FIELDS)}


def _places(first: str, last: str) -> slice:
    return slice(_PLACES[first], _PLACES[last] + 1)


_INPUTS = _places("x", "batch_sizes")
_VARIABLES = _places("x", "w_hr_reverse")  # what has a gradient
_WEIGHTS = _places("w_ih", "w_hr_reverse")
_FORWARD, _REVERSE = _places("w_ih", "w_hr"), _places("w_ih_reverse", "w_hr_reverse")
_EXTENT = _places("lengths", "batch_sizes")
_LENGTHS, _BATCH_SIZES, _GATES = (_PLACES[name] for name in ("lengths", "batch_sizes", "gates"))


def _schema(fields: Sequence[Field]) -> str:
    return ", ".join(f"{field.type} {field.name}" for field in fields)


_library = torch.library.Library("elman", "DEF")
_library.define(
    f"layer(str cell, {_schema(_FIELDS[_INPUTS])}, bool keep, bool recompute) -> "
    "(Tensor output, Tensor h_n, Tensor gates, Tensor states)"
)
_library.define(
    f"layer_backward(str cell, {_schema(_FIELDS)}, bool need_x, bool need_weights) -> "
    f"({_schema([Field(f'd_{field.name}', 'Tensor') for field in _FIELDS[_VARIABLES]])})"
)


class _Inputs:
    """What both operators begin with, by name; tensors, or arrays."""

    def __init__(self, cell: str, *tensors: Any) -> None:
        self.cell = CELLS[cell]
        self.x, self.h_0, *_ = tensors
        self.weights = [Weights(*tensors[_FORWARD])]
        if tensors[_PLACES["w_ih_reverse"]] is not None:
            self.weights.append(Weights(*tensors[_REVERSE]))
        self.lengths, self.reset, self.batch_sizes = self.extent = tensors[_EXTENT]
        *self.members, rows, self.output_size = self.weights[0].w_hh.shape  # (), (M,) or more
        self.hidden_size = rows // len(self.cell.gates)

    @property
    def directions(self) -> int:
        return len(self.weights)

    @property
    def batch(self) -> Any:
        # Packed input tells its batch by data alone, and so always comes with h_0.
        return (self.x if self.batch_sizes is None else self.h_0).shape[-2]

    @property
    def rows(self) -> Any:
        return self.x.shape[-2] * (self.x.shape[-3] if self.batch_sizes is None else 1)

    @property
    def output_shape(self) -> tuple[Any, ...]:
        return (*self.x.shape[:-1], self.directions * self.output_size)

    def state_shape(self, rows: Any) -> tuple[Any, ...]:
        size = self.cell.state_size(self.hidden_size, self.output_size)
        return (*self.members, self.directions, rows, size)

    def packed(self) -> Any:
        weights = itertools.chain(*self.weights)
        return engine.pack(self.cell, weights if _IS_LENT else map(_lend_weight, weights))


# Torch before its DLPack 1.2 cannot lend a tensor as it is.
_IS_LENT = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _lend(tensors: Sequence[Any]) -> Sequence[Any]:
    """All but the weights for the engine, whether or not they need gradients."""
    if _IS_LENT:
        return tensors
    weights = range(len(tensors))[_WEIGHTS]
    return [t if t is None or n in weights else t.numpy(force=True) for n, t in enumerate(tensors)]


def _present(cell: str, t: Tensor | None) -> Tensor | None:
    """The tensor, or zeros in memory for torch's zeros that take none."""
    if t is None or t.numel() == 0:
        return t
    if t._is_zerotensor():  # pyright: ignore[reportPrivateUsage]
        return t.clone()
    if t.untyped_storage().data_ptr():
        return t
    # Its storage was resized, by which FSDP, for one, frees a weight.
    raise RuntimeError(
        f"{CELLS[cell].kind}: the memory of a tensor of {tuple(t.shape)} has been freed"
    )


def _lend_weight(weight: Tensor | None) -> Any:
    """A weight for ``engine.pack``, in any type, and only for the call.

    A NumPy view would forbid its storage to be resized ever after, by which FSDP frees it.
    """
    return weight if _IS_LENT or weight is None else torch._C._to_dlpack(weight)  # pyright: ignore[reportPrivateUsage]


def _tensors(arrays: Sequence[Any]) -> list[Any]:
    return [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arrays]


def _empty(shape: Any, is_float64: bool) -> Tensor:
    """Memory for a result, which unlike an array's can be resized."""
    return torch.empty(shape, dtype=torch.float64 if is_float64 else torch.float32, device="cpu")


def _filled(tensors: Sequence[Any], like: Tensor) -> tuple[Tensor, ...]:
    """Results as an operator has to give them, which knows no None."""
    return tuple(like.new_empty(0) if t is None else t for t in tensors)


def _is_common(n: int, a: Any) -> bool:
    """Whether all members have argument n alike: batch_sizes, what is absent, and gates of none."""
    return n == _BATCH_SIZES or a is None or (n == _GATES and len(a.shape) == 1)


def _one_by_one(
    run: Callable[..., Sequence[Any]], cell: str, arrays: Sequence[Any], *options: bool
) -> Sequence[Any]:
    """Every member through the engine, where it finds its weights in the cache.

    So each has the bits that it has alone. The other way, one batched product a step for all
    members, was slower at every size: 3 to 70 times, for 8 to 64 members of 16 to 128 units.
    """
    results: list[Sequence[Any]] = []
    for m in range(len(arrays[0])):
        member = [a if _is_common(n, a) else a[m] for n, a in enumerate(arrays)]
        results.append(run(cell, member, *options))
    columns = (_tensors(column) for column in zip(*results, strict=True))
    return [None if column[0] is None else torch.stack(column) for column in columns]


def _layer(*arguments: Any) -> tuple[Tensor, ...]:
    return _filled(_run_layer(*arguments), arguments[1])


def _run_layer(cell: str, *arguments: Any) -> list[Any]:
    *tensors, keep, recompute = arguments
    paths.counts["kernel"] += 1
    try:
        return _tensors(_with_memory(_forward, cell, tensors, keep, recompute))
    except (MemoryError, ValueError) as e:  # ValueError: lengths out of range
        raise _error(cell, e) from None


def _error(cell: str, e: Exception) -> RuntimeError:
    """What the engine raised, as PyTorch's layers raise it."""
    kind, text = CELLS[cell].kind, str(e).removeprefix("elman._engine: ")
    return RuntimeError(text if text.startswith(kind) else f"{kind}: {text}")


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
        i.cell, i.packed(), i.x, i.h_0, Extent(*i.extent), threads, keep, recompute, empty=_empty
    )
    return output, h_n, *(kept or (None, None))


def _layer_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep, recompute = arguments
    i = _Inputs(*inputs)
    kept = 0 if recompute else i.cell.kept * i.hidden_size
    return (
        i.x.new_empty(i.output_shape),
        i.x.new_empty(i.state_shape(i.batch)),
        i.x.new_empty((*i.members, i.directions, i.rows, kept) if keep and kept else (0,)),
        i.x.new_empty(i.state_shape(i.batch + i.rows) if keep else (0,)),
    )


def _layer_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return _filled(_run_layer_backward(*arguments), arguments[1])


def _run_layer_backward(cell: str, *arguments: Any) -> list[Any]:
    *tensors, need_x, need_weights = arguments
    try:
        results = _tensors(_with_memory(_backward, cell, tensors, need_x, need_weights))
    except (MemoryError, ValueError) as e:  # ValueError: a weight's shape changed since forward
        raise _error(cell, e) from None
    dtype = tensors[_PLACES["w_ih"]].dtype
    if need_weights and dtype in HALVES:
        results[_WEIGHTS] = [d if d is None else d.to(dtype) for d in results[_WEIGHTS]]
    return results


def _backward(cell: str, arrays: Sequence[Any], need_x: bool, need_weights: bool) -> Sequence[Any]:
    *inputs, gates, states, d_output, d_h_n = arrays
    i = _Inputs(cell, *inputs)
    if i.members:
        return _one_by_one(_backward, cell, arrays, need_x, need_weights)
    d_x, d_h_0, d_weights = engine.backward(
        i.packed(),
        [None if w is None else w.shape for w in itertools.chain(*i.weights)],
        i.x,
        Kept(gates if len(gates.shape) > 1 else None, states),
        d_output,
        d_h_n,
        Extent(*i.extent),
        torch.get_num_threads(),
        need_x,
        need_weights,
        _empty,
    )
    results = [d_x, d_h_0, *(d_weights or [])]
    return results + [None] * (len(_FIELDS[_VARIABLES]) - len(results))


def _layer_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    cell, *tensors, need_x, need_weights = arguments
    i = _Inputs(cell, *tensors)
    d_x = i.x.new_empty(i.x.shape if need_x else (0,))
    d_weights = (
        i.x.new_empty((0,)) if w is None or not need_weights else w.new_empty(w.shape)
        for w in tensors[_WEIGHTS]
    )
    return d_x, i.x.new_empty(i.state_shape(i.batch)), *d_weights


# --- Gradients -----------------------------------------------------------------------------------


def _save_layer(ctx: Any, inputs: Any, output: Any) -> None:
    cell, *tensors, _, _ = inputs
    _, _, gates, states = output
    ctx.mark_non_differentiable(gates, states)
    ctx.set_materialize_grads(False)
    ctx.cell = cell
    ctx.save_for_backward(*tensors, gates, states)


def _differentiate_layer(ctx: Any, d_output: Any, d_h_n: Any, *_: Any) -> tuple[Any, ...]:
    _, *needs = ctx.needs_input_grad
    gradients = _run_backward(
        ctx.cell, *ctx.saved_tensors, d_output, d_h_n, needs[0], any(needs[_WEIGHTS])
    )
    return _where_needed(ctx, dict(enumerate(gradients)))


def _where_needed(ctx: Any, gradients: Mapping[int, Any]) -> tuple[Any, ...]:
    """What backward returns: a gradient, or None, for each of the arguments."""
    _, *needs = ctx.needs_input_grad
    return (None, *(gradients.get(n) if need else None for n, need in enumerate(needs)))


def _save_backward(ctx: Any, inputs: Any, output: Any) -> None:
    cell, *tensors, _, _, d_output, d_h_n, need_x, need_weights = inputs
    ctx.set_materialize_grads(False)
    ctx.cell = cell
    ctx.given = [need_x, True] + [need_weights and w is not None for w in tensors[_WEIGHTS]]
    ctx.save_for_backward(*tensors, d_output, d_h_n)


def _differentiate_backward(ctx: Any, *dd: Tensor | None) -> tuple[Any, ...]:
    """Double backward: the first one once more, through the loop on tensors."""
    *saved, d_output, d_h_n = ctx.saved_tensors
    i = _Inputs(ctx.cell, *saved)
    state_shape = i.state_shape(i.batch)
    if i.h_0 is None:
        saved[_PLACES["h_0"]] = i.x.new_zeros(state_shape)
    if d_output is None:
        d_output = i.x.new_zeros(i.output_shape)
    if d_h_n is None:
        d_h_n = i.x.new_zeros(state_shape)
    places = [n for n, t in enumerate(saved[_VARIABLES]) if t is not None]
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
    places += [_PLACES["d_output"], _PLACES["d_h_n"]]
    return _where_needed(ctx, dict(zip(places, [*second, *others], strict=True)))


# --- Modules -------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call of a module, but for its tensors; ``_engine.TensorCall`` has the same attributes.

    x and output are (L, N, features), (N, L, features) with `batch_first`, or (L, features); of a
    cell (N, features) or (features). The states are (K, N, features) or (K, features); of a cell as
    x.
    """

    cell: str
    num_layers: int = 1
    directions: int = 1
    is_cell: bool = False
    is_batched: bool = True
    batch_first: bool = False
    recompute: bool = False


def run_module(
    call: Call,
    layer: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    between: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Every layer. Returns output, if it is no cell, and the last states.

    ``layer(k, x, h_0, *weights, lengths, reset)`` runs layer k on what the operators take: an axis
    for the time, one for the batch, the states as one, and the weights of two directions. `weights`
    are those of each layer and direction, one behind the other, None for absent ones.
    """
    sizes = [s.shape[-1] for s in states] or _state_sizes(call.cell, weights)
    h_0 = None if not states else _full(call, join(states))
    x = _full(call, x, call.batch_first)
    reset = None if reset is None else _full(call, reset, call.batch_first)
    each = call.directions * len(Weights._fields)
    absent = [None] * (2 * len(Weights._fields) - each)

    def run(k: int, x: Tensor, h_0: Tensor | None) -> tuple[Tensor, Tensor]:
        return layer(k, x, h_0, *weights[k * each : (k + 1) * each], *absent, lengths, reset)

    output, finals = stack.run(call.num_layers, call.directions, run, x, h_0, between)
    final = finals[0] if len(finals) == 1 else torch.cat(finals)
    last = split(_short(call, final), sizes)
    return last if call.is_cell else (_short(call, output, call.batch_first), *last)


def _state_sizes(cell: str, weights: Sequence[Tensor | None]) -> list[int]:
    """The features of each state."""
    w_hh = weights[1]
    assert w_hh is not None
    rows, P = w_hh.shape
    return [P, rows // len(CELLS[cell].gates)][: len(CELLS[cell].states)]


def _full(call: Call, t: Any, batch_first: bool = False) -> Any:
    """With the axes that the operators have, in their order."""
    if call.is_cell:
        t = t.unsqueeze(0)
    if not call.is_batched:
        return t.unsqueeze(1)
    return t.transpose(0, 1) if batch_first else t


def _short(call: Call, t: Any, batch_first: bool = False) -> Any:
    """The way back."""
    if not call.is_batched:
        t = t.squeeze(1)
    elif batch_first:
        t = t.transpose(0, 1)
    return t.squeeze(0) if call.is_cell else t


# --- States --------------------------------------------------------------------------------------


def join(states: Sequence[Tensor]) -> Tensor | None:
    """A layer's states as the operators take them: one vector a row. None of none."""
    if len(states) > 1:
        return torch.cat([*states], -1)
    return states[0] if states else None


def split(state: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The way back, each of several in memory of its own."""
    if len(sizes) == 1:
        return (state,)
    parts = state.split([*sizes], -1)
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)


# --- Calls ---------------------------------------------------------------------------------------


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
    if is_transformed():
        return _layer_function.apply(*arguments)[:2]
    _, *tensors, keep, _ = arguments
    if _is_watched(*tensors[_VARIABLES]) or _is_one_negated(tensors[_VARIABLES]):
        results = torch.ops.elman.layer(*arguments)[:2]
    else:
        results = _DirectLayer.apply(*arguments) if keep else _run_layer(*arguments)[:2]
    if not keep or torch.compiler.is_compiling():
        return results
    # Each a node of its own, so that a hook on one is not called for want of its gradient.
    return tuple(t.view_as(t) for t in results)


def _run_backward(*arguments: Any) -> Sequence[Any]:
    """``elman::layer_backward``."""
    if is_transformed():
        return _backward_function.apply(*arguments)
    _, *tensors, d_output, d_h_n, _, _ = arguments
    if (
        torch.is_grad_enabled()
        or _is_watched(tensors[0], d_output, d_h_n)
        or _is_one_negated((*tensors[_VARIABLES], d_output, d_h_n))
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
    return t is not None and (type(t) not in _PLAIN or is_legacy_batchedtensor(t))


_PLAIN = (Tensor, torch.nn.Parameter)


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
        members = (None if t is None or t is i.batch_sizes else 0 for t in inputs[1:])
        return torch.func.vmap(run_scan, (None, *members))(*inputs)
    x, lengths, rows = i.x, i.lengths, None
    if i.batch_sizes is not None:
        inside = torch.arange(i.batch) < i.batch_sizes[:, None]
        lengths = inside.sum(0).to(x.device)
        # Which of (L, N) the packed rows are.
        rows = inside.flatten().int().argsort(descending=True, stable=True)[: x.shape[0]]
        rows = rows.to(x.device)
        padded = x.new_zeros((inside.numel(), x.shape[-1])).index_copy(0, rows, x)
        x = padded.unflatten(0, inside.shape)
    h_0 = x.new_zeros(i.state_shape(i.batch)) if i.h_0 is None else i.h_0
    weights = [Weights(*(w if w is None else w.to(x.dtype) for w in ws)) for ws in i.weights]
    output, h_n = scan.layer(i.cell, x, h_0, weights, xp=torch, lengths=lengths, reset=i.reset)
    return output if rows is None else output.flatten(0, 1)[rows], h_n


# --- vmap ----------------------------------------------------------------------------------------


def _lead(tensors: Sequence[Any], dims: Sequence[int | None], size: int) -> list[Any]:
    """Every tensor with the mapped axis in front, but those that no map changes."""

    def lead(t: Tensor, dim: int | None) -> Tensor:
        return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)

    return [
        t if _is_common(n, t) else lead(t, dim)
        for n, (t, dim) in enumerate(zip(tensors, dims, strict=True))
    ]


def _batch_rows(
    run: Any, size: int, cell: str, tensors: list[Any], dims: Any, *options: bool
) -> Any:
    """Calls that share their weights: their rows are rows of one batch, and keep their bits.

    Row n of call m becomes row n * size + m, and so among the kept rows of each step, and among the
    states before the first.
    """
    rows = list(tensors)
    for n, (t, field) in enumerate(zip(_lead(tensors, dims, size), _FIELDS, strict=False)):
        if not _is_common(n, t) and field.behind is not None:
            rows[n] = t.movedim(0, -1 - field.behind).flatten(-2 - field.behind, -1 - field.behind)
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


def _register(
    name: str,
    run: Any,
    fake: Any,
    save: Any,
    differentiate: Any,
    is_apart: Callable[[bool, bool, bool], bool],
) -> Any:
    """Tell PyTorch all of an operator, and give it as torch.func's transforms take it.

    `is_apart` says, from its two options and whether lengths are mapped, if mapped calls are to be
    members, each by itself, even where they share their weights.
    """
    operator = getattr(torch.ops.elman, name)

    def batch(run: Any, size: int, in_dims: Any, arguments: Sequence[Any]) -> Any:
        cell, *tensors, a, b = arguments
        _, *dims, _, _ = in_dims
        apart = is_apart(a, b, dims[_LENGTHS] is not None)
        apart = apart or any(dim is not None for dim in dims[_WEIGHTS])
        return (_batch_members if apart else _batch_rows)(run, size, cell, tensors, dims, a, b)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            return operator(*arguments)

        setup_context = staticmethod(save)
        backward = staticmethod(differentiate)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return batch(Function.apply, info.batch_size, in_dims, arguments)

    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return batch(operator, info.batch_size, in_dims, arguments)

    path = f"elman::{name}"
    _library.impl(name, run, "CPU")
    torch.library.register_fake(path, fake, lib=_library)
    torch.library.register_autograd(path, differentiate, setup_context=save, lib=_library)
    torch.library.register_vmap(path, vmap, lib=_library)
    return Function


_layer_function = _register(
    "layer",
    _layer,
    _layer_fake,
    _save_layer,
    _differentiate_layer,
    # Kept values lie in the order of the lengths of all rows of a call.
    lambda keep, _, lengths: keep and lengths,
)
_backward_function = _register(
    "layer_backward",
    _layer_backward,
    _layer_backward_fake,
    _save_backward,
    _differentiate_backward,
    lambda _, need_weights, lengths: need_weights or lengths,
)


# --- Counting ------------------------------------------------------------------------------------


def _products(cell: str, *tensors: Any) -> tuple[int, int]:
    """Floating-point operations in the products of the input, and in those of the states."""
    i = _Inputs(cell, *tensors)
    rows = 2 * math.prod(i.members) * i.rows

    def cost(*weights: Tensor | None) -> int:
        return rows * sum(w.shape[-2] * w.shape[-1] for w in weights if w is not None)

    of_input = sum(cost(w.w_ih) for w in i.weights)
    return of_input, sum(cost(w.w_hh, w.w_hr) for w in i.weights)


@register_flop_formula(torch.ops.elman.layer, get_raw=True)
def _count_layer(*arguments: Any, **_: Any) -> int:
    """What FlopCounterMode says of it: matrix products, of padding too, as of torch's layers."""
    *inputs, _keep, _recompute = arguments
    return sum(_products(*inputs))


@register_flop_formula(torch.ops.elman.layer_backward, get_raw=True)
def _count_layer_backward(*arguments: Any, **_: Any) -> int:
    """A product of forward has one behind it for what it takes, and one for its weight."""
    *inputs, need_x, need_weights = arguments
    of_input, of_states = _products(*inputs)
    return (need_x + need_weights) * of_input + (1 + need_weights) * of_states
