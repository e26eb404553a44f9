"""A module's call in one call of the engine's, for plain tensors that nothing watches.

The engine does then in some microseconds what :mod:`elman.torch.modules` does step by step, and is
forward and backward of one node of autograd, however many the layers. It looks at everything
first, and gives None for whatever is unusual: compilers, tracers, modes, transforms, autocast, the
profiler, subclasses, views that negate, freed memory, tensors of other devices, layouts, types or
shapes than the module's. Such calls, and a backward that is to be differentiated again, go the long
way.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportAttributeAccessIssue=false
# (parts of torch are not typed)

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from elman import _engine
from elman.torch.operators import paths, run_kernel, run_module


def _make_calls() -> Any:
    """The engine's part, or None where this PyTorch lacks something that it needs."""
    try:
        return _engine.TensorCalls(
            {
                "Tensor": Tensor,
                "Parameter": torch.nn.Parameter,
                # What is not false of these, is watching or changing what operators do.
                "watchers": [
                    torch._C._len_torch_dispatch_stack,
                    torch._C._len_torch_function_stack,
                    torch._C._are_functorch_transforms_active,
                    torch._C._is_any_autocast_enabled,
                    torch._C._is_tracing,
                    torch._C._autograd._profiler_enabled,
                ],
                "forward_ad": forward_ad,
                **{
                    name: torch._C.TensorBase.__dict__[name]
                    for name in ("is_neg", "requires_grad", "view_as", "contiguous")
                },
                **{
                    name: getattr(torch, name)
                    for name in (
                        "empty",
                        "empty_like",
                        "empty_strided",
                        "float32",
                        "float64",
                        "get_num_threads",
                        "is_grad_enabled",
                    )
                },
                "counts": paths.counts,
                "required": paths.required,
            }
        )
    except (AttributeError, KeyError, RuntimeError):
        return None


_calls = _make_calls()


# ``run(mode, module.__dict__, x, hx, lengths=None, reset=None)``: what the module gives for such a
# call, or None if it is to go the long way.
run: Callable[..., Any] = _calls.run if _calls is not None else lambda *_: None


class _Node(torch.autograd.Function):
    """Forward and backward of a module's call."""

    if _calls is not None:
        forward = staticmethod(_calls.forward)

    @staticmethod
    def backward(ctx: Any, *d: Tensor | None) -> Sequence[Any]:
        gradients = None if torch.compiler.is_compiling() else _calls.backward(ctx, d)
        return _differentiate(ctx, d) if gradients is None else gradients


def _differentiate(ctx: Any, d: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What backward gives, by the operators, after forward once more."""
    call: Any = ctx.call
    *saved, _ = ctx.saved_tensors
    _, *needs = ctx.needs_input_grad
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view of each, since one tensor may be there twice.
        inputs = [t.view_as(t) if need else t for t, need in zip(saved, needs, strict=True)]
        x, h_0, c_0, lengths, reset, *weights = call.spread(inputs)
        states = [t for t in (h_0, c_0) if t is not None]

        def layer(_: int, *arguments: Any) -> tuple[Tensor, Tensor]:
            return run_kernel(call.cell, *arguments, None, True, call.recompute)

        results = run_module(call, layer, x, states, weights, lengths, reset)
        outputs, cotangents = zip(
            *((r, given) for r, given in zip(results, d, strict=True) if given is not None),
            strict=True,
        )
        needed = [t for t, need in zip(inputs, needs, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, needed, cotangents, create_graph=again))
    return None, *(next(found) if need else None for need in needs)


if _calls is not None:
    _calls.apply = super(torch.autograd.Function, _Node).apply  # without Python's own part of it
