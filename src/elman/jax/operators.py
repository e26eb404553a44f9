"""One direction of one layer, forward and backward, as primitives of JAX.

``layer`` and ``layer_backward`` run the engine on the CPU, and elsewhere a ``lax.scan`` over the
same equations. ``layer_tangent`` is the derivative of ``layer`` along given directions: a scan,
whose transpose is ``layer_backward``. So gradients are the engine's, and derivatives of other kinds
and orders those of the scan, which computes the same.

All three begin with the operands of :data:`NAMES`, float32 or float64. What is absent is an array
of shape (0). They also run M members at once, layers alike with weights of their own: then every
other operand and result has a leading axis M.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false, reportUnknownLambdaType=false
# (parts of JAX are not typed)

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from elman import _engine, scan
from elman.jax import sharding
from elman.paths import Paths
from elman.spec import CELLS, Cell, Weights

paths = Paths("kernel", "scan", "own")
_type_of: Any = getattr(jax, "typeof", None) or getattr(core, "get_aval", None)  # before JAX 0.6

#: x (L, N, D), the states (N, H), weights as ``spec.Weights`` has them, lengths (N), reset (L, N).
NAMES = ("x", "h_0", "c_0", "w_ih", "w_hh", "b_ih", "b_hh", "lengths", "reset")
_X, _H_0, _C_0, _W_IH, _W_HH = range(5)
_LENGTHS, _RESET, _KEPT = range(7, 10)  # what forward kept comes behind them
_VARIABLES = range(_LENGTHS)  # what has a gradient
_WEIGHTS = range(_W_IH, _LENGTHS)
#: How many axes lie behind that of the rows, of each operand of ``layer_backward``.
_BEHIND = (1, 1, 1, None, None, None, None, 0, 0, 1, 1, 1, 1)
_BEHIND_IN_RESULTS = {"elman_forward": (1, 1, 1, 1), "elman_backward": _BEHIND[:_LENGTHS]}


class Call(NamedTuple):
    """What is known of a call when it is traced, but for shapes.

    Attributes
    ----------
    cell : its name.
    reverse : whether it runs from the last step to the first.
    keep : whether forward keeps what backward needs.
    moves : which of the variables, x to b_hh, have a gradient that is wanted.
    """

    cell: str
    reverse: bool
    keep: bool = False
    moves: tuple[bool, ...] = ()

    @property
    def known(self) -> Cell:
        """The cell itself."""
        return CELLS[self.cell]

    @property
    def need_x(self) -> bool:
        """Whether the gradient of x is wanted."""
        return self.moves[_X]

    @property
    def need_weights(self) -> bool:
        """Whether that of a weight is: then all are computed."""
        return any(self.moves[n] for n in _WEIGHTS)


def absent(like: Any = None) -> Any:
    """What stands for an operand that is not there."""
    return jnp.zeros((0,), jnp.float32 if like is None else like.dtype)


def is_absent(a: Any) -> bool:
    """Whether it is such; lengths of no rows are as good as none."""
    return a.shape == (0,)


def _shaped(a: Any, shape: Sequence[Any]) -> Any:
    return jax.ShapeDtypeStruct(tuple(shape), a.dtype)


# --- What they compute ---------------------------------------------------------------------------


def _results(*operands: Any, call: Call) -> list[Any]:
    """Output (L, N, H), h_n and c_n as h_0 and c_0, and what is kept, (N, ...)."""
    x, h_0, c_0, _, w_hh, *_ = operands
    *members, L, N, _ = x.shape
    H = w_hh.shape[-1]
    S = call.known.state_size(H, H)
    kept = (*members, N, L * call.known.kept * H + (L + 1) * S) if call.keep else (0,)
    shapes = ((*members, L, N, H), h_0.shape, c_0.shape, kept)
    return [_shaped(x, shape) for shape in shapes]


def _gradients(*operands: Any, call: Call) -> list[Any]:
    """Those of x to b_hh, each as the operand; absent where they are not needed."""
    needed = [call.need_x, True, True] + [call.need_weights] * len(_WEIGHTS)
    return [_shaped(operands[n], operands[n].shape if needed[n] else (0,)) for n in _VARIABLES]


def run_scan(*operands: Any, call: Call) -> list[Any]:
    """Output, h_n and c_n by ``lax.scan``: any device, all of JAX's transformations."""
    x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, lengths, reset = operands
    if x.ndim == 4:
        axes = [None if is_absent(a) else 0 for a in operands]
        return jax.vmap(partial(run_scan, call=call), axes)(*operands)
    cell, H = call.known, w_hh.shape[-1]
    weights = Weights(w_ih, w_hh, *(None if is_absent(b) else b for b in (b_ih, b_hh)))
    times = jnp.arange(x.shape[0])[:, None]
    inside = None if is_absent(lengths) else times < lengths
    starts = None if is_absent(reset) else reset
    if inside is not None:
        x = jnp.where(inside[..., None], x, 0)
        starts = None if starts is None else starts & inside
    if starts is not None and call.reverse:  # the step before the episode's first is the next one
        starts = jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])
    x_gates = x @ w_ih.T
    if weights.b_ih is not None:
        x_gates = x_gates + weights.b_ih

    def step(state: Any, now: Any) -> Any:
        x_t, runs, start = now
        before = state if start is None else jnp.where(start[:, None], 0, state)
        after = scan.step(cell, x_t, before, weights, jnp)
        if runs is None:
            return after, after[..., :H]
        runs = runs[:, None]
        return jnp.where(runs, after, state), jnp.where(runs, after[..., :H], 0)

    state = h_0 if is_absent(c_0) else jnp.concatenate([h_0, c_0], -1)
    now = (x_gates, inside, starts)
    state, output = jax.lax.scan(step, state, now, reverse=call.reverse)
    return [output, state[..., :H], c_0 if is_absent(c_0) else state[..., H:]]


def _scan_tangent(*operands: Any, call: Call) -> list[Any]:
    moving = iter(operands[_KEPT + 1 :])
    tangents = [next(moving) if moves else None for moves in call.moves]
    return _push(partial(run_scan, call=call), operands[:_KEPT], tangents)


def _scan_backward(*operands: Any, call: Call) -> list[Any]:
    """The gradients by the scan's own derivative; zeros for an absent gradient of a result."""
    fixed = operands[_LENGTHS:_KEPT]
    run = lambda *variables: run_scan(*variables, *fixed, call=call)  # noqa: E731
    results, vjp = jax.vjp(run, *operands[: len(_VARIABLES)])
    d = [
        jnp.zeros_like(result) if is_absent(d) else d
        for d, result in zip(operands[_KEPT + 1 :], results, strict=True)
    ]
    found = vjp(d)
    wanted = _gradients(*operands, call=call)
    return [d if d.shape == s.shape else absent(d) for d, s in zip(found, wanted, strict=True)]


def _scan_forward(*operands: Any, call: Call) -> list[Any]:
    """Nothing is kept, since backward computes it again; its place is filled."""
    kept = _results(*operands, call=call)[-1]
    return [*run_scan(*operands, call=call), jnp.zeros(kept.shape, kept.dtype)]


def _push(function: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """How a function's results move along tangents of its first arguments, None for none."""
    moving = [n for n, t in enumerate(tangents) if t is not None and not is_absent(primals[n])]

    def of_moving(*values: Any) -> Any:
        full = list(primals)
        for n, value in zip(moving, values, strict=True):
            full[n] = value
        return function(*full)

    return jax.jvp(of_moving, [primals[n] for n in moving], [tangents[n] for n in moving])[1]


# --- Primitives ----------------------------------------------------------------------------------


def _run_engine(target: str, *operands: Any, call: Call) -> Any:
    results = (_results if target == "elman_forward" else _gradients)(*operands, call=call)
    run = jax.ffi.ffi_call(target, results)
    return run(*operands, cell=call.cell, reverse=call.reverse)


def _run_engine_apart(target: str, *operands: Any, call: Call) -> Any:
    """``_run_engine`` on one of several devices, among which what is kept cannot be divided.

    It lies in an order that depends on all of a call's rows. So nothing is kept, but NaN for who
    would read it, and backward runs forward again.
    """
    if target == "elman_forward":
        found = _run_engine(target, *operands, call=call._replace(keep=False))
        kept = _results(*operands, call=call)[-1]
        return [*found[:-1], jnp.full(kept.shape, jnp.nan, kept.dtype)]
    before, given = operands[:_KEPT], operands[_KEPT + 1 :]
    *_, kept = _run_engine("elman_forward", *before, call=call._replace(keep=True))
    return _run_engine(target, *before, kept, *given, call=call)


def _lower_engine(target: str, context: Any, *operands: Any, call: Call) -> Any:
    apart = sharding.may_divide(context)
    run = partial(_run_engine_apart if apart else _run_engine, target, call=call)
    avals = context.avals_in
    if apart and avals[_X].ndim == 3 and sharding.can_divide(context):
        results = context.avals_out
        axes = [_axis_of_rows(a, n) for a, n in zip(avals, _BEHIND, strict=False)]
        behind = _BEHIND_IN_RESULTS[target]
        axes_out = [_axis_of_rows(a, n) for a, n in zip(results, behind, strict=True)]
        run = sharding.by_rows(run, f"{target} {call}", axes, results, axes_out)
    return mlir.lower_fun(run, multiple_results=True)(context, *operands)


def _axis_of_rows(a: Any, behind: int | None) -> int | None:
    return None if behind is None or is_absent(a) else a.ndim - 1 - behind


def _primitive(name: str, results: Any, by_scan: Any, target: str = "") -> Primitive:
    """One that runs the engine by the target on the CPU, if it has one, and the scan elsewhere."""
    primitive = Primitive(f"elman_{name}")
    primitive.multiple_results = True
    compiled = jax.jit(primitive.bind, static_argnames="call")

    def run_at_once(*operands: Any, call: Call) -> Any:
        with jax.disable_jit(False):  # where it is disabled, the call would come here again
            return compiled(*operands, call=call)

    primitive.def_impl(run_at_once)
    primitive.def_abstract_eval(
        lambda *avals, call: [
            core.ShapedArray(s.shape, s.dtype) for s in results(*avals, call=call)
        ]
    )

    def lowering(path: str, lower: Any) -> Any:
        def counted(context: Any, *operands: Any, call: Call) -> Any:
            if primitive is not layer_backward:  # which goes the way of its forward
                paths.take(path, call.known.kind)
            return lower(context, *operands, call=call)

        return counted

    lower_scan = mlir.lower_fun(by_scan, multiple_results=True)
    mlir.register_lowering(primitive, lowering("scan", lower_scan))
    if target:
        lower_engine = partial(_lower_engine, target)
        mlir.register_lowering(primitive, lowering("kernel", lower_engine), platform="cpu")
        sharding.tell_devices(primitive)
    return primitive


def _tangent_results(*operands: Any, call: Call) -> list[Any]:
    return _results(*operands[:_KEPT], call=call._replace(keep=False))[:-1]


for _name, _handler in (("forward", _engine.xla_forward), ("backward", _engine.xla_backward)):
    jax.ffi.register_ffi_target(f"elman_{_name}", _handler(), platform="cpu")
layer = _primitive("layer", _results, _scan_forward, "elman_forward")
layer_tangent = _primitive("layer_tangent", _tangent_results, _scan_tangent)
layer_backward = _primitive("layer_backward", _gradients, _scan_backward, "elman_backward")


# --- Derivatives ---------------------------------------------------------------------------------


def _given(tangents: Sequence[Any]) -> list[Any]:
    return [None if type(t) is ad.Zero else t for t in tangents]


def _differentiate_layer(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call) -> Any:
    given = _given(tangents[: len(_VARIABLES)])
    moves = tuple(t is not None and not is_absent(a) for a, t in zip(primals, given, strict=False))
    *results, kept = layer.bind(*primals, call=call._replace(keep=True))
    moving = [t for t, move in zip(given, moves, strict=True) if move]
    d = layer_tangent.bind(*primals, kept, *moving, call=call._replace(keep=True, moves=moves))
    if not call.keep:
        kept = absent(kept)
    return [*results, kept], [*d, ad.Zero(_type_of(kept))]


def _transpose_tangent(d: Sequence[Any], *operands: Any, call: Call) -> list[Any]:
    *primals, kept = operands[: _KEPT + 1]
    given = [absent(kept) if type(a) is ad.Zero else a for a in d]
    gradients = layer_backward.bind(*primals, kept, *given, call=call)
    moving = [g for g, moves in zip(gradients, call.moves, strict=True) if moves]
    pairs = zip(moving, operands[_KEPT + 1 :], strict=True)
    found = [g if ad.is_undefined_primal(t) else None for g, t in pairs]
    return [None] * (_KEPT + 1) + found


def _differentiate_by_scan(
    primitive: Primitive,
    function: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    call: Call,
) -> Any:
    """Of the other two: what is kept is a function of the operands, and does not move by itself."""
    paths.take("scan", call.known.kind)
    given = _given(tangents)
    given[_LENGTHS : _KEPT + 1] = [None] * 3
    results = primitive.bind(*primals, call=call)
    return results, _push(partial(function, call=call), primals, given)


ad.primitive_jvps[layer] = _differentiate_layer
ad.primitive_transposes[layer_tangent] = _transpose_tangent
for _primitive_, _function in ((layer_tangent, _scan_tangent), (layer_backward, _scan_backward)):
    ad.primitive_jvps[_primitive_] = partial(_differentiate_by_scan, _primitive_, _function)


# --- vmap ----------------------------------------------------------------------------------------


def _batch(
    primitive: Primitive, operands: Sequence[Any], dims: Sequence[Any], *, call: Call
) -> Any:
    """Calls that share their weights are rows of one batch, others are members.

    So are those that have gradients of weights, and those whose rows have lengths, in whose order
    lies what is kept.
    """
    sizes = [a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None]
    apart = any(dims[n] is not None for n in _WEIGHTS)
    apart = apart or (call.keep and not is_absent(operands[_LENGTHS]))
    apart = apart or (primitive is layer_backward and call.need_weights)
    lead = [
        a if is_absent(a) else _lead(a, d, sizes[0]) for a, d in zip(operands, dims, strict=True)
    ]
    results = (_batch_members if apart else _batch_rows)(primitive, lead, operands, call)
    return results, [None if is_absent(r) else 0 for r in results]


def _lead(a: Any, dim: int | None, size: int) -> Any:
    """The array with the mapped axis in front."""
    return jnp.broadcast_to(a, (size, *a.shape)) if dim is None else jnp.moveaxis(a, dim, 0)


def _batch_members(primitive: Primitive, lead: list[Any], _: Any, call: Call) -> list[Any]:
    mapped = lead[_X].shape[:-3]  # of members that were members already, two axes

    def merge(a: Any) -> Any:
        return a if is_absent(a) else a.reshape(math.prod(mapped), *a.shape[len(mapped) :])

    results = primitive.bind(*map(merge, lead), call=call)
    return [r if is_absent(r) else r.reshape(*mapped, *r.shape[1:]) for r in results]


def _batch_rows(primitive: Primitive, lead: list[Any], given: Any, call: Call) -> list[Any]:
    """Row n of call b becomes row n * B + b."""
    size, *_, L, N, _ = lead[_X].shape
    rows = list(given)
    for n, (a, behind) in enumerate(zip(lead, _BEHIND, strict=False)):
        if behind is not None and not is_absent(a):
            rows[n] = _merge_kept(a, call, L) if n == _KEPT else _merge_rows(a, behind)
    results = primitive.bind(*rows, call=call)
    shape = (N, size)
    if primitive is layer and call.keep:
        *results, kept = results
        return [*_part_rows(results, shape), _part_kept(kept, call, L, shape)]
    return _part_rows(results, shape)


def _merge_rows(a: Any, behind: int = 1) -> Any:
    axis = a.ndim - 2 - behind
    a = jnp.moveaxis(a, 0, axis + 1)
    rows = a.shape[axis] * a.shape[axis + 1]
    return a.reshape(*a.shape[:axis], rows, *a.shape[axis + 2 :])


def _part_rows(results: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    return [
        r if is_absent(r) else jnp.moveaxis(r.reshape(*r.shape[:-2], *shape, r.shape[-1]), -2, 0)
        for r in results
    ]


def _merge_kept(kept: Any, call: Call, steps: int) -> Any:
    parts = _parts_of_kept(kept, call, steps)
    return _whole_kept([_merge_rows(part) for part in parts])


def _part_kept(kept: Any, call: Call, steps: int, shape: Sequence[int]) -> Any:
    parts = _parts_of_kept(kept, call, steps)
    return _whole_kept(_part_rows(parts, shape))


def _parts_of_kept(kept: Any, call: Call, steps: int) -> list[Any]:
    """What the engine keeps where no row has a length: gates (L, N, ...), states (L + 1, N, S)."""
    *lead, N, features = kept.shape
    states = len(call.known.states)
    H = features // (steps * call.known.kept + (steps + 1) * states)
    sizes = (steps, N, call.known.kept * H), (steps + 1, N, states * H)
    flat = kept.reshape(*lead, N * features)
    gates = steps * N * call.known.kept * H
    return [
        part.reshape(*lead, *size)
        for part, size in zip((flat[..., :gates], flat[..., gates:]), sizes, strict=True)
    ]


def _whole_kept(parts: list[Any]) -> Any:
    *lead, _, N, _ = parts[0].shape
    sizes = [math.prod(part.shape[-3:]) for part in parts]
    flat = [part.reshape(*lead, size) for part, size in zip(parts, sizes, strict=True)]
    return jnp.concatenate(flat, -1).reshape(*lead, N, sum(sizes) // max(N, 1))


def _batch_by_scan(operands: Sequence[Any], dims: Sequence[Any], *, call: Call) -> Any:
    results = jax.vmap(partial(_scan_tangent, call=call), dims)(*operands)
    return results, [0] * len(results)


for _primitive_ in (layer, layer_backward):
    batching.primitive_batchers[_primitive_] = partial(_batch, _primitive_)
batching.primitive_batchers[layer_tangent] = _batch_by_scan
