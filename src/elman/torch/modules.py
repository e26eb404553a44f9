"""What a module's call does: of this package's classes, and of torch's own that it serves.

All that is asked of a module is what ``torch.nn``'s classes have, and ``recompute`` or
``reset_after`` where it has them.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from __future__ import annotations  # torch.compile of torch 2.6 cannot read unions

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.fx.proxy import Proxy, TraceError
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.nn.utils.rnn import PackedSequence

from elman.spec import (
    CELLS,
    WEIGHTS,
    Cell,
    Shape,
    Spec,
    Weights,
    check_lengths,
    check_lengths_lie_within,
    check_reset,
    check_weights,
    takes,
)
from elman.torch import calls
from elman.torch.operators import (
    HALVES,
    Call,
    is_transformed,
    paths,
    run_kernel,
    run_module,
    run_scan,
)

#: torch's own classes by their names, whatever ``install`` puts in their place.
STOCK: dict[str, Any] = {
    cls.__name__: cls for cls in (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
}

_STRIDED = torch.strided
_FLOATS = frozenset((torch.float32, torch.float64, *HALVES))
# The types that oneDNN has no LSTM of on this processor.
_LACKING = frozenset(
    half
    for half, has in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if torch.backends.mkldnn.is_available() and not has()
)


def served(x: Tensor, states: Sequence[Tensor], *weights: Any) -> bool:
    """Whether the engine takes these tensors."""
    dtype = x.dtype
    if dtype not in _FLOATS or torch.is_autocast_enabled("cpu"):
        return False
    of_state = states[0].dtype if states else dtype
    if of_state != dtype and not (of_state == torch.float32 and dtype in HALVES):
        return False
    for tensors, expected in (((x, *weights), dtype), (states, of_state)):
        for t in tensors:
            if type(t) is ExpandedWeight:  # whose gradients per sample are torch's layers' alone
                return False
            if t is not None and (t.dtype != expected or not t.is_cpu or t.layout != _STRIDED):
                return False
    return True


def run_rounded(cell: str, x: Tensor, h_0: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The engine, with x, output and mostly the state rounded in half precision."""
    if x.dtype not in HALVES:
        return run_kernel(cell, x, h_0, *arguments)
    state = None if h_0 is None else h_0.float()
    output, h_n = run_kernel(cell, x.float(), state, *arguments)
    return output.to(x.dtype), h_n.to(x.dtype if h_0 is None else h_0.dtype)


def _given(cell: Cell, x: Any, hx: Any) -> Sequence[Tensor] | None:
    """The states of a call: h, or h and c, or none for zeros. None if these or x are no tensors."""
    states: Any = (hx,) if len(cell.states) == 1 else hx
    if hx is None:
        states = ()
    elif not isinstance(states, (tuple, list)) or len(states) != len(cell.states):
        return None
    for t in (x, *states):
        if not isinstance(t, Tensor) or t.is_nested:  # which may have no shape
            return None
    return states


def _pair(last: Sequence[Tensor]) -> Any:
    """Final states as torch's classes give them: h, or (h, c)."""
    return last[0] if len(last) == 1 else tuple(last)


def is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether gradients may be asked for, so that forward keeps what backward needs."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True  # a trace holds for training and inference
    if not torch.is_grad_enabled():
        return False
    # A transform may hide what it differentiates.
    return is_transformed() or any(t is not None and t.requires_grad for t in tensors)


def needs_loop() -> bool:
    """Whether a transform is at work that sees tensor operations alone.

    Such are forward mode, as the engine has no forward derivatives, and functionalize.
    """
    if is_compiling():
        return False
    return forward_ad._current_level >= 0 or is_transformed(TransformType.Functionalize)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def _becomes_onnx() -> bool:
    """Whether ``torch.onnx.export`` is tracing."""
    return is_compiling() and exporter_runs()


def _becomes_old_onnx() -> bool:
    """Whether it is tracing as before ``dynamo=True``: it knows torch's own layers."""
    return torch.jit.is_tracing() and not is_compiling() and torch.onnx.is_in_onnx_export()  # pyright: ignore[reportPrivateImportUsage]


def exporter_runs() -> bool:
    """Whether ``torch.onnx.export`` does, in whichever way."""
    return torch.onnx.is_in_onnx_export()  # of which torch.compile would make False


# What torch.compiler.assume_constant_result does, which imports the compiler: half of all the time
# that importing this package takes.
exporter_runs._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _tensor(title: str, name: str, values: Any) -> Tensor:
    """Lengths or resets as a tensor, which shares no memory with an array of the caller's."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise RuntimeError(f"{title}: {name} must be dense, got {values.layout}")
        return values
    try:
        if isinstance(values, np.ndarray):  # of any strides and byte order
            values = values.astype(values.dtype.newbyteorder("="), order="C")
        return torch.tensor(values, device="cpu")  # whatever the default
    except (TypeError, ValueError, RuntimeError) as e:
        raise RuntimeError(f"{title}: {name} is nothing that torch reads: {e}") from e


def _check_shapes(title: str, expected: Mapping[str, Shape], weights: Mapping[str, Any]) -> None:
    shapes = {name: tuple(w.shape) for name, w in weights.items() if w is not None}
    check_weights(title, expected, shapes, RuntimeError)


def _node(module: Any, input: Any, hx: Any, **extent: Any) -> Any:
    """A call in a graph of torch.fx, which looks into a module no more than into torch.nn's."""
    name = input.tracer.path_of_module(module)
    if not name:
        raise TraceError(
            f"{module._get_name()}: torch.fx traces a model that has this module, not the module "
            "alone; put it into a torch.nn.Sequential"
        )
    extent = {k: v for k, v in extent.items() if v is not None}
    return input.tracer.create_proxy("call_module", name, (input, hx), extent)


def refuse_scripting(name: str) -> Any:
    """What torch.jit.script is told of a module of the class of that name."""
    raise NotImplementedError(
        f"{name}: torch.jit.script cannot compile what Elman runs. Use "
        "torch.jit.trace, torch.export or torch.compile; or turn an accelerated model back first, "
        "with elman.torch.accelerate(model, undo=True)"
    )


class _Refusal:
    def __init__(self, name: str) -> None:
        self._name = name

    def __len__(self) -> int:
        return refuse_scripting(self._name)

    def __getitem__(self, index: int) -> str:
        return refuse_scripting(self._name)


class Unscriptable:
    """A class's ``__jit_ignored_attributes__``, which torch.jit reads before it compiles a module.

    The list of it refuses to be read, wherever the module lies in what is compiled.
    """

    def __get__(self, module: Any, cls: type) -> _Refusal:
        return _Refusal(cls.__name__)


def trace_forward(self: Any, *input: Any, **kwargs: Any) -> Any:
    """What torch calls in place of a layer's ``forward`` where it traces.

    ``torch.onnx.export`` with dynamo=False hands keywords of the module's own on by position.
    """
    kwargs |= zip(("lengths", "reset"), input[2:], strict=False)
    return nn.Module._slow_forward(self, *input[:2], **kwargs)  # pyright: ignore[reportPrivateUsage]


def run_layer(
    module: Any, input: Any, hx: Any = None, lengths: Any = None, reset: Any = None
) -> Any:
    """Output and h_n of an RNN, a GRU or an LSTM, as ``forward`` of its class says."""
    if isinstance(input, Proxy):
        return _node(module, input, hx, lengths=lengths, reset=reset)
    if lengths is not None:
        lengths = _tensor(type(module).__name__, "lengths", lengths)
    if reset is not None:
        reset = _tensor(type(module).__name__, "reset", reset)
    if not is_compiling():
        results = calls.run(module.mode, module.__dict__, input, hx, lengths, reset)
        if results is not None:
            return results
    return _run_stepwise(module, input, hx, lengths, reset)


def _run_stepwise(
    module: Any, input: Any, hx: Any, lengths: Tensor | None, reset: Tensor | None
) -> Any:
    """The long way, whatever is about."""
    extended = lengths is not None or reset is not None
    packed = isinstance(input, PackedSequence)
    if packed and extended:
        name = type(module).__name__
        raise RuntimeError(f"{name}: lengths= and reset= go with padded input, not packed")
    cell = cell_of(module)
    x, batch = (input.data, int(input.batch_sizes[0])) if packed else (input, None)
    given = _given(cell, x, hx)
    valid = given is not None and takes(module, x.shape, [s.shape for s in given], batch)
    states = given or ()
    own = module._parameters  # quicker than by attribute
    weights: list[Any] = [
        own[name] if name in own else getattr(module, name)
        for names in module._all_weights
        for name in names
    ]
    if valid:
        _check_layer_weights(module, weights)
    loop = needs_loop() or _is_beyond_torch(module, packed)
    kernel = valid and not loop and (_becomes_onnx() or served(x, states, *weights))
    lacking = cell.gated is not None  # torch has no such layer
    if _becomes_old_onnx():
        if extended or lacking:
            raise RuntimeError(
                f"{type(module).__name__}: torch.onnx.export with dynamo=False has torch's own "
                "layers alone, without lengths=, reset= and reset_after=False; use dynamo=True"
            )
        kernel = False
    if not valid or not (kernel or extended or loop or lacking):
        paths.take("torch", type(module).__name__, module.num_layers)
        if packed and given and not valid:
            # torch's LSTM does not look at their sizes, and reads past their end.
            ordered = module.permute_hidden(hx, input.sorted_indices)
            module.check_forward_args(x, ordered, input.batch_sizes)
        result = STOCK[cell.kind].forward(module, input, hx)
        beyond = extended or lacking
        assert valid or not beyond, "torch's layer took what spec.takes did not"
        return result
    if kernel:
        paths.check("kernel", type(module).__name__)  # the operator counts, when it runs
    else:
        paths.take("scan", type(module).__name__, module.num_layers)
    if packed:
        return _run_packed(module, input, hx, weights, kernel)
    return _run_padded(module, x, states, weights, kernel, lengths, reset)


def cell_of(module: Any) -> Cell:
    """The cell of an RNN, a GRU or an LSTM."""
    return CELLS[module.mode.lower()]


def _check_layer_weights(module: Any, weights: Sequence[Any]) -> None:
    """Raise unless the weights are those of its sizes and options, which anybody may set."""
    if is_compiling():
        return
    sizes = (module.input_size, module.hidden_size, module.num_layers)
    options = (module.bias, module.batch_first, 0.0, module.bidirectional, module.proj_size)
    shapes = Spec(cell_of(module), *sizes, *options).weight_shapes()
    names = [name for each in module._all_weights for name in each]
    given = dict(zip(names, weights, strict=True))
    _check_shapes(type(module).__name__, shapes, given)


def _is_beyond_torch(module: Any, packed: bool) -> bool:
    """Whether torch's layer fails: autocast takes oneDNN, which may lack the type."""
    if module.mode != "LSTM" or packed or module.proj_size:
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") in _LACKING


def _run_padded(
    module: Any,
    x: Tensor,
    states: Sequence[Tensor],
    weights: list[Tensor],
    kernel: bool,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Any]:
    batched, name = x.dim() == 3, type(module).__name__
    if lengths is not None:
        batch = (x.shape[0 if module.batch_first else 1],) if batched else ()
        integral = not lengths.dtype.is_floating_point and not lengths.dtype.is_complex
        integral = integral and lengths.dtype != torch.bool
        check_lengths(name, tuple(lengths.shape), integral, batch, RuntimeError)
        lengths = lengths.to(x.device, torch.int64).reshape(-1)
        if not (kernel or needs_loop()):
            steps = x.shape[1 if batched and module.batch_first else 0]
            check_lengths_lie_within(name, lengths.tolist(), steps, RuntimeError)
    if reset is not None:
        boolean = reset.dtype == torch.bool
        check_reset(name, tuple(reset.shape), boolean, tuple(x.shape[:-1]), RuntimeError)
        reset = reset.to(x.device)
    if x.dtype != weights[0].dtype:
        module.check_input(x, None)  # which raises, except under autocast
    output, *last = _run_layers(
        module, x, states, weights, kernel, lengths, reset, is_batched=batched
    )
    return output, _pair(last)


def _run_packed(
    module: Any, input: PackedSequence, hx: Any, weights: list[Tensor], kernel: bool
) -> tuple[PackedSequence, Any]:
    x, batch_sizes, sorted_indices, unsorted_indices = input
    cell, states = cell_of(module), []
    if hx is None:
        K, N = len(module._all_weights), int(batch_sizes[0])
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)
        states = [x.new_zeros(K, N, size) for size in sizes[: len(cell.states)]]
    else:
        hx = module.permute_hidden(hx, sorted_indices)
        module.check_forward_args(x, hx, batch_sizes)  # of any order, which may name other rows
        states = _given(cell, x, hx) or ()
    output, *last = _run_layers(
        module, x, states, weights, kernel, batch_sizes=batch_sizes, batch_first=False
    )
    packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    return packed, module.permute_hidden(_pair(last), unsorted_indices)


def _run_layers(
    module: Any,
    x: Tensor,
    states: Sequence[Tensor],
    weights: list[Tensor],
    kernel: bool,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    **axes: bool,
) -> tuple[Tensor, ...]:
    cell, directions = cell_of(module).name, 2 if module.bidirectional else 1
    recompute = getattr(module, "recompute", False)
    axes = {"batch_first": module.batch_first, **axes}
    call = Call(cell, module.num_layers, directions, recompute=recompute, **axes)
    keep = is_differentiated(x, *states, *weights)
    there = (True, True, module.bias, module.bias, module.proj_size > 0)
    given = iter(weights)
    named = [next(given) if is_there else None for _ in module._all_weights for is_there in there]

    def layer(k: int, x: Tensor, h_0: Any, *given: Any) -> tuple[Tensor, Tensor]:
        if _becomes_onnx():
            from elman.torch import export

            return export.run_layer(module, weights, given[-2], given[-1], k, x, h_0)
        if not kernel:
            return run_scan(cell, x, h_0, *given, batch_sizes)
        return run_rounded(cell, x, h_0, *given, batch_sizes, keep, recompute)

    between = None
    if module.training and module.dropout > 0:
        between = partial(F.dropout, p=module.dropout, training=True)
    return run_module(call, layer, x, states, named, lengths, reset, between)


def run_cell(module: Any, name: str, input: Any, hx: Any) -> Any:
    """One step of a cell, whose name is in ``elman.spec.CELLS``."""
    if not is_compiling():
        results = calls.run(name, module.__dict__, input, hx)
        if results is not None:
            return results
    if isinstance(input, Proxy):
        return _node(module, input, hx)
    cell, H = CELLS[name], module.hidden_size
    weights = Weights(module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    given = _given(cell, input, hx)
    valid = given is not None and input.dim() in (1, 2) and input.shape[-1] == module.input_size
    batch, states = input.shape[:-1] if valid else (), given or ()
    valid = valid and all(tuple(s.shape) == (*batch, H) for s in states)
    valid = valid and module.input_size > 0 and H > 0  # torch's cells may be empty
    bias = weights.b_ih is not None
    valid = valid and bias == (weights.b_hh is not None)  # torch's may have one alone
    if valid and not is_compiling():
        shapes = Spec(cell, module.input_size, H, bias=bias).cell_weight_shapes()
        names = zip(WEIGHTS, weights, strict=True)
        _check_shapes(module._get_name(), shapes, dict(names))
    loop = needs_loop() or _becomes_onnx()
    kernel = valid and not loop and not _becomes_old_onnx() and served(input, states, *weights)
    if not kernel and not (valid and cell.gated):
        paths.take("torch", module._get_name())
        result = STOCK[f"{cell.kind}Cell"].forward(module, input, hx)
        if cell.gated is None:
            return result
        raise RuntimeError(
            f"{module}: with reset_after=False input_size and hidden_size must be at least 1, "
            "and bias_ih and bias_hh both be there, or neither"
        )
    if kernel:
        paths.check("kernel", module._get_name())
    else:
        paths.take("scan", module._get_name())
    keep = is_differentiated(input, *states, *weights)
    call = Call(name, is_cell=True, is_batched=input.dim() == 2)

    def layer(_: int, *arguments: Any) -> tuple[Tensor, Tensor]:
        if not kernel:
            return run_scan(name, *arguments, None)
        return run_rounded(name, *arguments, None, keep, False)

    return _pair(run_module(call, layer, input, states, weights))
