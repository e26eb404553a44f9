"""What lies between Keras's layers and the engine: how weights lie, and which steps are masked."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false
# (parts of Keras are not typed)

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from elman.spec import CELLS, Cell, Weights
from elman.weights.frameworks import FRAMEWORKS, ROWS, Form


def _form(cell: Cell) -> Form:
    alike = [(form.kind, form.reset_before) for form in FRAMEWORKS["keras"].forms]
    return FRAMEWORKS["keras"].forms[alike.index((cell.kind, cell.gated is not None))]


#: How Keras's layer of a cell has its weights.
_FORMS = {name: _form(cell) for name, cell in CELLS.items()}


def shapes(cell: Cell, D: int, H: int, bias: bool) -> list[tuple[int, ...]]:
    """Those of kernel, recurrent kernel and, if there is one, bias."""
    sizes = {"D": D, "H": H, "G": len(cell.gates) * H, "2": 2}
    named = _FORMS[cell.name].tensors.values()
    return [tuple(sizes[axis] for axis in axes.split()) for axes in named][: 2 + bias]


def arrange(cell: Cell, xp: Any, kernel: Any, recurrent_kernel: Any, bias: Any = None) -> Weights:
    """Keras's tensors as the engine takes them, by operations of the backend's library xp."""
    known = _FORMS[cell.name]
    order = known.order or cell.gates
    places = [order.index(gate) for gate in cell.gates]

    def blocks(a: Any) -> list[Any]:
        """What each gate has of it."""
        each = xp.split(a, len(places), -1)
        return [each[n] for n in places]

    w_ih, w_hh = (xp.concatenate([w.T for w in blocks(a)]) for a in (kernel, recurrent_kernel))
    if bias is None:
        return Weights(w_ih, w_hh)
    bias = xp.concatenate(blocks(bias), -1)
    return Weights(w_ih, w_hh, *(bias if known.biases is ROWS else (bias, xp.zeros_like(bias))))


def run_masked(
    run: Callable[..., tuple[Any, Sequence[Any]]],
    x: Any,
    mask: Any,
    first: Any,
    zeroed: bool,
    whole: bool,
) -> tuple[Any, Any, Sequence[Any]]:
    """A layer that takes no notice of the steps (N, L) that are False in `mask`.

    ``run(x, lengths)`` is given the others moved to the front of each row. Returns the last step's
    output, that of each step if `whole`, and the last states. Output at a masked step is that of
    the last one before it that is none, `first` (N, H) if there is none, or zeros if `zeroed`.
    """
    steps = ops.arange(mask.shape[1], dtype="int32")
    order = ops.argsort(ops.where(mask, steps, steps + mask.shape[1]), -1)
    output, last = run(_gather(x, order), mask.sum(-1))
    latest = ops.cumsum(ops.cast(mask, "int32"), -1) - 1
    if not whole:
        mask, latest = mask[:, -1:], latest[:, -1:]
    # Of the last step alone the state has it, whose gradient costs less.
    known = _gather(output, ops.maximum(latest, 0)) if whole else last[0][:, None]
    output = ops.where(latest[..., None] < 0, first[:, None], known)
    if zeroed:
        output = ops.where(mask[..., None], output, ops.zeros_like(output))
    return output[:, -1], output, last


def _gather(a: Any, steps: Any) -> Any:
    """Of each row of a (N, L, features) the steps (N, any)."""
    N, L, features = a.shape
    rows = ops.arange(N, dtype="int32")[:, None] * L + ops.cast(steps, "int32")
    return ops.take(ops.reshape(a, (N * L, features)), rows, 0)
