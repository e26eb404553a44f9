"""A batch sharded over several devices: each computes the rows that it has.

XLA cannot divide the call of another library by itself: it gathers the batch on every device. JAX's
custom partitioning tells it how. It is asked for where Shardy divides programs, JAX's default since
0.7. The partitioner before it ends the process over some shapes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false
# (parts of JAX are not typed)

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

try:
    from jax._src.dispatch import prim_requires_devices_during_lowering as _told
except ImportError:  # a name that JAX does not promise; without it a batch is gathered
    _told = None

_config: Any = jax.config
#: The axis of the rows of each operand, or of each result; None where it has none.
Axes = Sequence[int | None]


def tell_devices(primitive: Any) -> None:
    """Have a primitive's lowering know the program's devices, which ``by_rows`` asks for."""
    if _told is not None:
        _told.add(primitive)


def may_divide(context: Any) -> bool:
    """Whether a program is for several devices, and Shardy divides its arrays among them."""
    if _told is None or not _config.jax_use_shardy_partitioner:
        return False
    where = context.module_context.axis_context
    if hasattr(where, "manual_axes"):  # within shard_map, which divides along these itself
        return set(where.manual_axes) != set(where.mesh.axis_names)
    return getattr(where, "num_devices", 1) > 1


def can_divide(context: Any) -> bool:
    """Whether such a program says how its devices lie, and is no exported one, without Python."""
    module = context.module_context
    is_known = getattr(module.axis_context, "abstract_mesh", None) is not None
    return is_known and not module.lowering_parameters.for_export


def by_rows(
    run: Callable[..., Any], name: str, axes: Axes, results: Sequence[Any], axes_out: Axes
) -> Callable[..., Any]:
    """`run`, of which each device computes the rows that it has.

    All of them do where the rows are not sharded, or not into equal parts. `results` are the shapes
    of what it gives; those without rows are summed over the devices. The name is one that no other
    function of such operands has: it goes into the program, which else would be the same, for those
    who keep compiled ones.
    """
    axes = (None, *axes)  # of the name

    def partition(mesh: Any, operands: Any, results: Any) -> Any:
        names = _names(mesh, operands, axes)

        def run_part(_: Any, *parts: Any) -> Any:
            found = run(*parts)
            if names is None:
                return found
            return [
                jax.lax.psum(a, names) if axis is None and a.size else a
                for a, axis in zip(found, axes_out, strict=True)
            ]

        def places(arrays: Any, axes: Axes) -> list[NamedSharding]:
            return [_place(mesh, a, axis, names) for a, axis in zip(arrays, axes, strict=True)]

        return mesh, run_part, places(results, axes_out), tuple(places(operands, axes))

    def run_whole(_: Any, *operands: Any) -> Any:
        return run(*operands)

    def divided(*operands: Any) -> Any:
        named = (jnp.full((1,), zlib.crc32(name.encode()), "uint32"), *operands)
        rule = _rule(named, axes, results, axes_out)
        whole = custom_partitioning(run_whole)
        whole.def_partition(partition, None, sharding_rule=rule)
        return whole(*named)

    return divided


def _names(mesh: Any, operands: Any, axes: Axes) -> tuple[str, ...] | None:
    """The mesh's axes that divide the rows of an operand, into equal parts; or None."""
    for a, axis in zip(operands, axes, strict=True):
        spec = a.sharding.spec
        if axis is None or axis >= len(spec) or spec[axis] is None:
            continue
        names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
        parts = math.prod(mesh.shape[name] for name in names)
        if parts > 1 and a.shape[axis] % parts == 0:
            return names
    return None


def _place(mesh: Any, a: Any, axis: int | None, names: Any) -> NamedSharding:
    each = [names if n == axis else None for n in range(len(a.shape))]
    return NamedSharding(mesh, PartitionSpec(*each))


def _rule(operands: Any, axes: Axes, results: Any, axes_out: Axes) -> str:
    """For Shardy: the rows have a name, and every other axis one of its own, which says nothing."""
    others = map("a{}".format, itertools.count())

    def side(arrays: Any, axes: Axes) -> str:
        return ", ".join(
            " ".join("rows" if n == axis else next(others) for n in range(len(a.shape)))
            for a, axis in zip(arrays, axes, strict=True)
        )

    return f"{side(operands, axes)} -> {side(results, axes_out)}"
