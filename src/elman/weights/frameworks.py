"""What every framework calls its weights, and how they lie: one entry a framework.

An entry of :data:`FRAMEWORKS` says how a framework's tensors are named and shaped, which way round
a matrix is, in which order the gates stand and how the biases are stored, all seen from PyTorch's:
matrices (G, D) and (G, H), gates r, z, n, two biases. ``weights.py`` reads and writes by it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from elman.spec import Shape, Weights

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


class ConversionError(ValueError):
    """The weights are not what they were said to be, or the target cannot hold them."""


# How a framework lays out one direction of one layer


class Biases(NamedTuple):
    """A way to store the two biases b_ih and b_hh.

    read : the tensors in the order of a form's names, to Weights; write : the inverse.
    holds : which of b_hh's values have a place of their own: "all", "new" (a GRU's b_hn, which
        cannot join the others since r multiplies it), or "none".
    """

    read: Callable[..., Weights]
    write: Callable[[Weights], Iterable[Array]]
    holds: str


def _read_pair(w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Weights:
    return Weights(w_ih, w_hh, b_ih, b_hh)


def _write_pair(w: Weights) -> Iterable[Array]:
    return w


def _read_rows(w_ih: Array, w_hh: Array, rows: Array) -> Weights:
    return Weights(w_ih, w_hh, rows[0], rows[1])


def _write_rows(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, np.stack([w.b_ih, w.b_hh])


def _read_joined(w_ih: Array, w_hh: Array, both: Array) -> Weights:
    return Weights(w_ih, w_hh, *np.split(both, 2))


def _write_joined(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, np.concatenate([w.b_ih, w.b_hh])


def _read_new(w_ih: Array, w_hh: Array, b: Array, b_new: Array) -> Weights:
    return Weights(w_ih, w_hh, b, np.concatenate([np.zeros_like(b[len(b_new) :]), b_new]))


def _write_new(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, w.b_ih, np.split(w.b_hh, 3)[2]


def _read_gates(*t: Array) -> Weights:
    return _read_new(np.hstack(t[:3]), np.hstack(t[3:6]), np.concatenate(t[6:9]), t[9])


def _write_gates(w: Weights) -> Iterable[Array]:
    w_ih, w_hh, b, b_new = _write_new(w)
    return *np.hsplit(w_ih, 3), *np.hsplit(w_hh, 3), *np.split(b, 3), b_new


def _read_one(w_ih: Array, w_hh: Array, b: Array) -> Weights:
    return Weights(w_ih, w_hh, b, np.zeros_like(b))


def _write_one(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, w.b_ih


PAIR = Biases(_read_pair, _write_pair, "all")  # two tensors
ROWS = Biases(_read_rows, _write_rows, "all")  # the two rows of one
JOINED = Biases(_read_joined, _write_joined, "all")  # one behind the other in one
NEW = Biases(_read_new, _write_new, "new")  # one bias for all gates, and b_hn
GATES = Biases(_read_gates, _write_gates, "new")  # the same; each gate has tensors of its own
ONE = Biases(_read_one, _write_one, "none")  # one bias for all gates


@dataclass(frozen=True)
class Form:
    """The tensors of one direction of one layer, as a framework has them.

    Attributes
    ----------
    gates : 3 for a GRU, 1 for an RNN.
    tensors : name to axes, such as "G D", where G = gates * H; the input weight, of which
        "D G" says that matrices are transposed, the recurrent weight, the biases; or those of each
        gate in turn.
    biases : how they are stored.
    optional_bias : whether a layer may do without them.
    update_first : the gates stand in the order z, r, n.
    update_turned : h' = (1 - z) * h + z * n, so that its z is 1 - z here. As
        1 - σ(a) = σ(-a), what makes z changes its sign.
    reset_before : n = tanh(W_in x + b_in + W_hn (r * h)).
    nonlinearity : of an RNN, where it is always the same.
    note : what the tensors do not tell; note_unbiased : what they do not tell without biases.
    """

    gates: int
    tensors: Mapping[str, str]
    biases: Biases
    optional_bias: bool = True
    update_first: bool = False
    update_turned: bool = False
    reset_before: bool = False
    nonlinearity: str = ""
    note: str = ""
    note_unbiased: str = ""

    @property
    def transposed(self) -> bool:
        """Whether matrices have inputs as rows."""
        return next(iter(self.tensors.values())).startswith("D")

    def axis(self, letter: str) -> tuple[str, int]:
        """A tensor that has the axis D or H, and which of its two it is."""
        found = ((t, axes.split()) for t, axes in self.tensors.items())
        return next((t, axes.index(letter)) for t, axes in found if letter in axes)

    def shapes(self, input_size: int, hidden_size: int, bias: bool = True) -> dict[str, Shape]:
        """Name and shape of every tensor."""
        rows = self.gates * hidden_size
        sizes = {"D": input_size, "H": hidden_size, "G": rows, "2G": 2 * rows, "2": 2}
        shapes = {t: tuple(sizes[a] for a in axes.split()) for t, axes in self.tensors.items()}
        return shapes if bias else dict(list(shapes.items())[:2])

    def store(self, w: Weights) -> Iterable[Array]:
        """PyTorch's weights as this form's tensors, in the order of its names."""
        if self.update_turned:
            w = Weights(*map(_turn, w))
        if self.update_first:
            w = Weights(*map(_swap, w))
        return self.biases.write(_transpose(w) if self.transposed else w)

    def restore(self, tensors: Iterable[Array]) -> Weights:
        """The inverse of ``store``."""
        w = self.biases.read(*tensors)
        if self.transposed:
            w = _transpose(w)
        if self.update_first:
            w = Weights(*map(_swap, w))
        return Weights(*map(_turn, w)) if self.update_turned else w


def _swap(a: Array) -> Array:
    """(r, z, n) to (z, r, n), or back."""
    first, second, new = np.split(a, 3)
    return np.concatenate([second, first, new])


def _turn(a: Array) -> Array:
    """(r, z, n) to (r, -z, n), or back."""
    reset, update, new = np.split(a, 3)
    return np.concatenate([reset, -update, new])


def _transpose(w: Weights) -> Weights:
    return w._replace(w_ih=w.w_ih.T, w_hh=w.w_hh.T)


# The frameworks


class Layout(NamedTuple):
    """What a tensor's full name depends on, beside its layer and direction.

    gates : 3 for a GRU, 1 for an RNN; cell : it is a cell's; several : its layer is named as one of
    several; directions : 1 or 2.
    """

    gates: int
    cell: bool
    several: bool
    directions: int


Address = Callable[[str, Layout, int, int], str]


def _unchanged(arrays: Tensors) -> Tensors:
    return arrays


@dataclass(frozen=True)
class Framework:
    """What a framework has, and what it calls it.

    Attributes
    ----------
    forms : how a direction's tensors may lie; the first of a kind is the one that is written.
    address : (tensor, layout, layer, direction) to the tensor's full name.
    layers, cells : whether it has a layer's names, or a cell's.
    stacks, bidirectional : whether a layer's names go beyond one layer, or one direction.
    unpack, pack : from its tensors to those that the names above are for, and back.
    """

    forms: tuple[Form, ...]
    address: Address
    layers: bool = True
    cells: bool = True
    stacks: bool = True
    bidirectional: bool = True
    unpack: Callable[[Tensors], Tensors] = _unchanged
    pack: Callable[[Tensors], Tensors] = _unchanged

    def layouts(self, gates: int) -> Iterator[Layout]:
        """Every layout of such names."""
        if self.layers:
            for directions in (1, 2)[: 1 + self.bidirectional]:
                for several in (False, True)[: 1 + self.stacks]:
                    yield Layout(gates, False, several, directions)
        if self.cells:
            yield Layout(gates, True, False, 1)


def _torch(first: int) -> Address:
    def address(tensor: str, at: Layout, layer: int, direction: int) -> str:
        end = "_reverse" if direction else ""
        return tensor if at.cell else f"{tensor}_l{layer + first}{end}"

    return address


def _bare(tensor: str, at: Layout, layer: int, direction: int) -> str:
    return tensor


def _keras(tensor: str, at: Layout, layer: int, direction: int) -> str:
    if at.cell:
        return tensor
    name = "gru" if at.gates == 3 else "simple_rnn"
    wrapper = f"{('forward', 'backward')[direction]}_{name}/" if at.directions == 2 else ""
    return f"{wrapper}{name}_cell/{tensor}"


def _keras_unpack(arrays: Tensors) -> Tensors:
    """Drop what Keras puts before a layer's own names, and the names and numbers it makes up.

    ("my_model/bidirectional_1/forward_gru_3/gru_cell/kernel" is "forward_gru/gru_cell/kernel".)
    """
    found: Tensors = {}
    for path, a in arrays.items():
        name = _keras_name(path.split("/"))
        if name in found:
            raise ConversionError(f"keras: {path!r} is of a second layer; convert one at a time")
        found[name] = a
    return found


def _keras_name(path: list[str]) -> str:
    *above, tensor = path
    if not above:
        return tensor
    kind = above[-1].partition("_cell")[0]
    wrapper = above[-2].partition("_")[0] if len(above) > 1 else ""
    outer = f"{wrapper}_{kind}/" if wrapper in ("forward", "backward") else ""
    return f"{outer}{kind}_cell/{tensor}"


def _flax(prefix: str) -> Address:
    def address(tensor: str, at: Layout, layer: int, direction: int) -> str:
        if at.cell:
            return tensor
        several = prefix.format(layer) if at.several else ""
        wrapper = ("forward_rnn.", "backward_rnn.")[direction] if at.directions == 2 else ""
        return f"{several}{wrapper}cell.{tensor}"

    return address


def _onnx(tensor: str, at: Layout, layer: int, direction: int) -> str:
    return f"{tensor}{f'_l{layer}' if at.several else ''}[{direction}]"


def _onnx_unpack(arrays: Tensors) -> Tensors:
    """One tensor a direction, from one that has directions as its first axis."""
    for name, a in arrays.items():
        if a.ndim == 0 or len(a) not in (1, 2):
            raise ConversionError(f"onnx: {name}'s first axis must be 1 or 2, got {a.shape}")
    return {f"{name}[{d}]": part for name, a in arrays.items() for d, part in enumerate(a)}


def _onnx_pack(arrays: Tensors) -> Tensors:
    together: dict[str, list[Array]] = {}
    for name, a in arrays.items():
        together.setdefault(name.partition("[")[0], []).append(a)
    return {name: np.stack(parts) for name, parts in together.items()}


def _haiku(tensor: str, at: Layout, layer: int, direction: int) -> str:
    core = "gru" if at.gates == 3 else "vanilla_rnn"
    return f"{core}{f'_{layer}' if layer else ''}/{tensor}"


_TORCH = {"weight_ih": "G D", "weight_hh": "G H", "bias_ih": "G", "bias_hh": "G"}
_TORCH_FORMS = (Form(3, _TORCH, PAIR), Form(1, _TORCH, PAIR))
_KERAS = {"kernel": "D G", "recurrent_kernel": "H G", "bias": "G"}
_NNX = {"dense_i.kernel": "D G", "dense_h.kernel": "H G", "dense_i.bias": "G"}
_ONNX = {"W": "G D", "R": "G H", "B": "2G"}
_VANILLA = {"linear/w": "D G", "linear_1/w": "H G", "linear/b": "G"}

FRAMEWORKS = {
    "torch": Framework(_TORCH_FORMS, _torch(0)),
    "oneflow": Framework(_TORCH_FORMS, _torch(0)),
    "r-torch": Framework(_TORCH_FORMS, _torch(1), cells=False),
    "mlx": Framework(
        (
            Form(3, {"Wx": "G D", "Wh": "G H", "b": "G", "bhn": "H"}, NEW),
            Form(1, {"Wxh": "G D", "Whh": "G H", "bias": "G"}, ONE),
        ),
        _bare,
        cells=False,
        stacks=False,
        bidirectional=False,
    ),
    "keras": Framework(
        (
            Form(
                3,
                _KERAS | {"bias": "2 G"},
                ROWS,
                update_first=True,
                note_unbiased="a Keras GRU without biases is taken to have reset_after=True, the "
                "default",
            ),
            Form(3, _KERAS, ONE, update_first=True, reset_before=True),
            Form(1, _KERAS, ONE),
        ),
        _keras,
        stacks=False,
        unpack=_keras_unpack,
    ),
    "flax-linen": Framework(
        (
            Form(
                3,
                {f"i{gate}.kernel": "D H" for gate in "rzn"}
                | {f"h{gate}.kernel": "H H" for gate in "rzn"}
                | {f"i{gate}.bias": "H" for gate in "rzn"}
                | {"hn.bias": "H"},
                GATES,
                optional_bias=False,
            ),
            Form(
                1,
                {"i.kernel": "D H", "h.kernel": "H H", "i.bias": "H"},
                ONE,
                optional_bias=False,
            ),
        ),
        _flax("layers_{}."),
    ),
    "flax-nnx": Framework(
        (Form(3, _NNX, ONE, optional_bias=False), Form(1, _NNX, ONE, optional_bias=False)),
        _flax("layers.{}."),
    ),
    "equinox": Framework(
        (Form(3, {"weight_ih": "G D", "weight_hh": "G H", "bias": "G", "bias_n": "H"}, NEW),),
        _bare,
        layers=False,
    ),
    "onnx": Framework(
        (
            Form(
                3, _ONNX, JOINED, update_first=True, note="the GRU node has linear_before_reset=1"
            ),
            Form(1, _ONNX, JOINED),
        ),
        _onnx,
        cells=False,
        unpack=_onnx_unpack,
        pack=_onnx_pack,
    ),
    "haiku": Framework(
        (
            Form(
                3,
                {"w_i": "D G", "w_h": "H G", "b": "G"},
                ONE,
                optional_bias=False,
                update_first=True,
                update_turned=True,
                reset_before=True,
            ),
            Form(1, _VANILLA | {"linear_1/b": "G"}, PAIR, optional_bias=False, nonlinearity="relu"),
            Form(1, _VANILLA, ONE, optional_bias=False, nonlinearity="relu"),
        ),
        _haiku,
        cells=False,
        bidirectional=False,
    ),
}
