"""What every framework calls its weights, and how they lie: one entry a framework.

An entry of :data:`FRAMEWORKS` says how a framework's tensors are named and shaped, which way round
a matrix is, in which order the gates stand and how the biases are stored, all seen from PyTorch's:
the fields of ``spec.Weights``, gates in the order of ``spec.Cell``. ``convert.py`` reads and writes
by it, and knows of no framework and no kind of cell.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from elman.spec import CELLS, Cell, Shape, Spec, Weights

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


class ConversionError(ValueError):
    """The weights are not what they were said to be, or the target cannot hold them."""


#: The first cell of each kind, since weights do not tell an RNN's nonlinearity.
KINDS: dict[str, Cell] = {}
for _cell in CELLS.values():
    KINDS.setdefault(_cell.kind, _cell)

#: Gates whose recurrent bias is no mere summand, so that it cannot join the other one, and why.
APART = {"GRU": {"new": "b_hn in r * (W_hn h + b_hn)"}}

#: Where a GRU applies its reset gate, by the cell.
RESETS = {
    "gru": "after the recurrent product, r * (W_hn h + b_hn)",
    "gru_reset_before": "before the recurrent product, W_hn (r * h)",
}


def nonlinearities(kind: str) -> list[str]:
    """The names between which a kind of cell leaves the choice; "" alone where it leaves none."""
    return ["tanh", "relu"] if kind == "RNN" else [""]


# How a framework lays out one direction of one layer. What reads tensors reads those of other
# libraries than NumPy too.


def _library(a: Any) -> Any:
    """The functions of the library that has the array."""
    return np if isinstance(a, np.ndarray) else a.__array_namespace__()


class Parts(NamedTuple):
    """A way to cut w_ih and w_hh into tensors.

    join : a form's tensors and the number of gates, to w_ih, w_hh and what :class:`Biases` read;
    cut : the inverse. Default: none, such tensors are read and not written.
    """

    join: Callable[[Sequence[Array], int], Sequence[Array]]
    cut: Callable[[Sequence[Array], int], Sequence[Array]] | None = None


def _unchanged(tensors: Any, *_: Any) -> Any:
    return tensors


def _join_gates(t: Sequence[Array], gates: int) -> Sequence[Array]:
    join = _library(t[0]).concatenate
    whole = [join(t[k : k + gates], -1) for k in range(0, 3 * gates, gates)]
    return [*whole, *t[3 * gates :]]


def _cut_gates(t: Sequence[Array], gates: int) -> Sequence[Array]:
    return [part for whole in t[:3] for part in np.split(whole, gates, -1)] + [*t[3:]]


def _join_inputs(t: Sequence[Array], gates: int) -> Sequence[Array]:
    w, *biases = t
    inputs = len(w) - w.shape[1] // gates
    return [w[:inputs], w[inputs:], *biases]


def _cut_inputs(t: Sequence[Array], gates: int) -> Sequence[Array]:
    w_ih, w_hh, *biases = t
    return [np.concatenate([w_ih, w_hh]), *biases]


def _join_cudnn(t: Sequence[Array], gates: int) -> Sequence[Array]:
    w_ih, w_hh, *biases = t
    return [_from_cudnn(w_ih, gates), _from_cudnn(w_hh, gates), *biases]


def _from_cudnn(w: Array, gates: int) -> Array:
    """Each gate's matrix has its shape turned, (D, H), and its values as (H, D) has them."""
    rows, units = len(w), w.shape[1] // gates
    parts = [np.reshape(a, (units, rows)) for a in np.split(w, gates, -1)]
    return np.transpose(np.concatenate(parts))


WHOLE = Parts(_unchanged, _unchanged)  # a tensor each
BY_GATE = Parts(_join_gates, _cut_gates)  # each gate has tensors of its own, and of its first bias
STACKED = Parts(_join_inputs, _cut_inputs)  # one matrix on [x, h]
AS_CUDNN = Parts(_join_cudnn)  # as Keras 2 has what cuDNN takes


class Biases(NamedTuple):
    """A way to store the two biases b_ih and b_hh.

    read : the tensors in the order of a form's names, to Weights; write : the inverse.
    holds : which of b_hh's values have a place of their own: "all", "apart" (those of the gates in
        :data:`APART`), or "none".
    """

    read: Callable[..., Weights]
    write: Callable[[Weights], Iterable[Array]]
    holds: str


def _write_pair(w: Weights) -> Iterable[Array]:
    return [a for a in w if a is not None]


def _read_rows(w_ih: Array, w_hh: Array, rows: Array) -> Weights:
    return Weights(w_ih, w_hh, rows[0], rows[1])


def _write_rows(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, np.stack([w.b_ih, w.b_hh])


def _read_joined(w_ih: Array, w_hh: Array, both: Array) -> Weights:
    return Weights(w_ih, w_hh, *np.split(both, 2))


def _write_joined(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, np.concatenate([w.b_ih, w.b_hh])


def _read_new(w_ih: Array, w_hh: Array, b: Array, b_new: Array) -> Weights:
    xp = _library(b)
    return Weights(w_ih, w_hh, b, xp.concatenate([xp.zeros_like(b[len(b_new) :]), b_new]))


def _write_new(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, w.b_ih, np.split(w.b_hh, 3)[2]


def _read_one(w_ih: Array, w_hh: Array, b: Array) -> Weights:
    return Weights(w_ih, w_hh, b, _library(b).zeros_like(b))


def _write_one(w: Weights) -> Iterable[Array]:
    return w.w_ih, w.w_hh, w.b_ih


PAIR = Biases(Weights, _write_pair, "all")  # two tensors
ROWS = Biases(_read_rows, _write_rows, "all")  # the two rows of one
JOINED = Biases(_read_joined, _write_joined, "all")  # one behind the other in one
NEW = Biases(_read_new, _write_new, "apart")  # one bias for all gates, and a GRU's b_hn
ONE = Biases(_read_one, _write_one, "none")  # one bias for all gates


@dataclass(frozen=True)
class Form:
    """The tensors of one direction of one layer, as a framework has them.

    Attributes
    ----------
    kind : of the cell, as in ``spec.Cell``.
    tensors : name to axes, such as "G D", where G counts a row a gate and unit: the input weight,
        of which "D G" says that matrices are transposed, the recurrent weight, the biases, and a
        projection, "P H"; or as `parts` says.
    biases : how they are stored.
    parts : how the matrices are cut up.
    optional_bias : whether a layer may do without biases.
    order : of its gates. Default: PyTorch's.
    turned : gates whose weights have the other sign. With h' = (1 - z) * h + z * n, z is 1 - z
        here, and 1 - σ(a) = σ(-a).
    adds : what the class itself adds to a gate, beside the bias that is stored.
    reset_before : of a GRU, whether its reset gate is applied before the recurrent product.
    nonlinearity : of an RNN, where it is always the same.
    note : what the tensors do not tell; note_written : what whoever gives them to the class has to
        know.
    """

    kind: str
    tensors: Mapping[str, str]
    biases: Biases
    parts: Parts = WHOLE
    optional_bias: bool = True
    order: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()
    adds: Mapping[str, float] = field(default_factory=lambda: {})
    reset_before: bool = False
    nonlinearity: str = ""
    note: str = ""
    note_written: str = ""

    @property
    def cell(self) -> Cell:
        """The cell, whose gates are PyTorch's; of an RNN the first."""
        return CELLS["gru_reset_before"] if self.reset_before else KINDS[self.kind]

    @property
    def transposed(self) -> bool:
        """Whether matrices have inputs as rows."""
        return next(iter(self.tensors.values())).startswith("D")

    @property
    def projected(self) -> bool:
        """Whether h is a projection."""
        return "P H" in self.tensors.values()

    @property
    def recurrent(self) -> str:
        """A tensor that reads h."""
        reads = {"H", "P", "D+H"}
        return next(t for t, axes in self.tensors.items() if reads & {*axes.split()})

    @property
    def bias_names(self) -> list[str]:
        """The tensors that are biases."""
        return [t for t, axes in self.tensors.items() if axes in ("G", "H", "2G", "2 G")]

    def measure(self, shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
        """D, H and P as the shapes of the matrices say; 0 for what they do not."""
        found: dict[str, int] = {}
        for tensor, axes in self.tensors.items():
            shape, letters = shapes.get(tensor, ()), axes.split()
            if len(shape) == len(letters) == 2:
                found = dict(zip(letters, shape, strict=True)) | found
        if "H" not in self.tensors[self.recurrent].split():
            found.setdefault("H", found.get("G", 0) // len(self.cell.gates))
        hidden = found.get("H", 0)
        return found.get("D", found.get("D+H", 0) - hidden), hidden, found.get("P", hidden)

    def shapes(self, spec: Spec, input_size: int) -> dict[str, Shape]:
        """Name and shape of every tensor, of biases too."""
        D, H, G = input_size, spec.hidden_size, len(self.cell.gates) * spec.hidden_size
        sizes = {"D": D, "H": H, "D+H": D + H, "P": spec.output_size, "G": G, "2G": 2 * G, "2": 2}
        return {t: tuple(sizes[a] for a in axes.split()) for t, axes in self.tensors.items()}

    def store(self, w: Weights) -> Iterable[Array]:
        """PyTorch's weights as this form's tensors, in the order of its names."""
        assert self.parts.cut
        gates = self.cell.gates
        w = _arrange(w, gates, self.order or gates, self.turned)
        stored = self.biases.write(_transpose(w) if self.transposed else w)
        return self.parts.cut([*stored], len(gates))

    def restore(self, tensors: Iterable[Array]) -> Weights:
        """The inverse of ``store``."""
        gates = self.cell.gates
        w = self.biases.read(*self.parts.join([*tensors], len(gates)))
        if self.transposed:
            w = _transpose(w)
        w = _arrange(w, self.order or gates, gates, self.turned)
        return w._replace(b_hh=w.b_hh + self.added(w.b_hh)) if self.adds else w

    def added(self, b: Array) -> Array:
        """What the class itself adds to each gate, shaped as the bias."""
        gates = self.cell.gates
        each = [self.adds.get(gate, 0) for gate in gates]
        return np.repeat(each, len(b) // len(gates)).astype(b.dtype)


def _arrange(
    w: Weights, gates: Sequence[str], order: Sequence[str], turned: Sequence[str]
) -> Weights:
    """The rows of the gates in another order, and with the other sign where turned."""
    if gates == order and not turned:
        return w

    def arrange(a: Array) -> Array:
        rows = dict(zip(gates, np.split(a, len(gates)), strict=True))
        return np.concatenate([-rows[gate] if gate in turned else rows[gate] for gate in order])

    return Weights(*map(arrange, w[:4]), w_hr=w.w_hr)


def _transpose(w: Weights) -> Weights:
    return w._replace(w_ih=w.w_ih.T, w_hh=w.w_hh.T)


# What a framework calls its layers

#: A layer's number in a name, which is none where it would be too long to be read.
NUMBER = r"(?:0|[1-9]\d{0,8})"


class Layout(NamedTuple):
    """What a tensor's full name depends on, beside its layer and direction.

    kind : of the cell; cell : the names are a cell's; several : its layer is named as one of
    several; directions : 1 or 2.
    """

    kind: str
    cell: bool
    several: bool
    directions: int


class Affix(NamedTuple):
    """What stands before and behind a tensor's own name in the full one."""

    before: str
    behind: str = ""

    def name(self, tensor: str) -> str:
        """The tensor's full name."""
        return f"{self.before}{tensor}{self.behind}"

    def under(self, prefix: str, separator: str) -> "Affix":
        """The same of a layer that has a name."""
        return self._replace(before=f"{prefix}{separator}{self.before}") if prefix else self


class Place(NamedTuple):
    """Where one direction of one layer belongs, as its names say.

    prefix : of the layer, without the separator; "" where the names are the layer's own alone.
    layer, direction : within it; cell : whether the names are a cell's.
    kind : of the cell, where the names tell.
    several : whether names are such only where there are several layers or directions.
    """

    prefix: str
    layer: int = 0
    direction: int = 0
    cell: bool = False
    kind: str = ""
    several: bool = False


def _alone(name: str, a: Array) -> Tensors:
    return {name: a}


@dataclass(frozen=True)
class Framework:
    """What a framework has, and what it calls it.

    Attributes
    ----------
    forms : how a direction's tensors may lie; the first that holds a layer is the one written.
    affix : (layout, layer, direction) to what stands around the names of such tensors.
    places : the inverse, of any model's names: what stands around them to the places that this
        may be, the likeliest first; as many for every name, or none for what is no layer's.
    separator : between the parts of a name.
    behind : pattern of what may stand behind a tensor's own name.
    numbered : whether the layers of a stack are layers of their own, numbered where they stand.
    layers, cells : whether it has a layer's names, or a cell's. No cell has a projection.
    stacks, bidirectional : whether a layer's names go beyond one layer, or one direction.
    unpack, pack : from each of its tensors to those that the names above are for, and back from
        all of them; dropped : tensors that unpack looks at, and drops.
    """

    forms: tuple[Form, ...]
    affix: Callable[[Layout, int, int], Affix]
    places: Callable[[Affix], list[Place]]
    separator: str = "."
    behind: str = ""
    numbered: bool = False
    layers: bool = True
    cells: bool = True
    stacks: bool = True
    bidirectional: bool = True
    unpack: Callable[[str, Array], Tensors] = _alone
    pack: Callable[[Tensors], Tensors] = _unchanged
    dropped: tuple[str, ...] = ()

    @cached_property
    def _names(self) -> re.Pattern[str]:
        own = [t for form in self.forms for t in form.tensors]
        tensors = {re.escape(t) for t in (*own, *self.dropped)}
        before = f"(?:.*?{re.escape(self.separator)})?"
        return re.compile(f"({before})({'|'.join(tensors)})({self.behind})", re.DOTALL)

    def split(self, name: str) -> tuple[Affix, str] | None:
        """What stands around a tensor's own name, and that; None where it is no layer's."""
        match = self._names.fullmatch(name)
        return match and (Affix(match[1], match[3]), match[2])

    def layouts(self, form: Form) -> Iterator[Layout]:
        """Every layout of the form's names."""
        if self.layers:
            for directions in (1, 2)[: 1 + self.bidirectional]:
                for several in (False, True)[: 1 + self.stacks]:
                    yield Layout(form.kind, False, several, directions)
        if self.cells and not form.projected:
            yield Layout(form.kind, True, False, 1)


def _torch(forms: tuple[Form, ...], first: int = 0, cells: bool = True) -> Framework:
    """Names with a layer's number behind them, which counts from the first."""

    def affix(at: Layout, layer: int, direction: int) -> Affix:
        return Affix("", "" if at.cell else f"_l{layer + first}{'_reverse' * direction}")

    def places(a: Affix) -> list[Place]:
        number, _, reverse = a.behind.removeprefix("_l").partition("_")
        layer = int(number) - first if number else 0
        place = Place(a.before[:-1], layer, int(bool(reverse)), not number)
        return [place] if layer >= 0 else []

    behind = f"_l{NUMBER}(?:_reverse)?"
    behind = f"(?:{behind})?" if cells else behind
    return Framework(forms, affix, places, behind=behind, cells=cells)


def _mlx(at: Layout, layer: int, direction: int) -> Affix:
    """``mlx.nn``'s names, or those of ``elman.mlx``'s layers of several."""
    if not at.several and at.directions == 1:
        return Affix("")
    return Affix(f"layers{'_reverse' * direction}.{layer}.")


def _mlx_places(a: Affix) -> list[Place]:
    alone = Place(a.before[:-1])
    listed = re.fullmatch(r"(?:(.*)\.)?layers(_reverse)?\.(" + NUMBER + r")\.", a.before, re.DOTALL)
    if not listed:
        return [alone, alone]
    layer, direction = int(listed[3]), int(bool(listed[2]))
    return [Place(listed[1] or "", layer, direction, several=True), alone]


def _bare(at: Layout, layer: int, direction: int) -> Affix:
    return Affix("")


def _bare_places(a: Affix) -> list[Place]:
    return [Place(a.before[:-1], cell=True)]


_KERAS_NAMES = {"RNN": "simple_rnn", "GRU": "gru", "LSTM": "lstm"}


def _keras(at: Layout, layer: int, direction: int) -> Affix:
    if at.cell:
        return Affix("")
    name = _KERAS_NAMES[at.kind]
    wrapper = f"{('forward', 'backward')[direction]}_{name}/" if at.directions == 2 else ""
    return Affix(f"{wrapper}{name}_cell/")


def _keras_places(a: Affix) -> list[Place]:
    """A layer's name is its user's, and may lack a cell's behind it: Keras 2 has such.

    So do its optimisers' averages, of each weight by its name.
    """
    *path, _ = a.before.split("/")
    if path[:1] == ["optimizer_weights"]:
        return []
    whole = Place("/".join(path), cell=not path)
    if path and re.fullmatch(r"(?:.*_)?cell(?:_\d+)?", path[-1]):
        path = path[:-1]
    layer = Place("/".join(path), cell=whole.cell)
    *outer, last = path or [""]
    wrapped = re.match("(forward|backward)_", last)
    if not wrapped:
        return [layer, layer, whole]
    direction = int(wrapped[1] == "backward")
    return [Place("/".join(outer), 0, direction, several=True), layer, whole]


def _flax(list_of_layers: str) -> Callable[[Layout, int, int], Affix]:
    def affix(at: Layout, layer: int, direction: int) -> Affix:
        if at.cell:
            return Affix("")
        several = list_of_layers.format(layer) if at.several else ""
        wrapper = ("forward_rnn.", "backward_rnn.")[direction] if at.directions == 2 else ""
        return Affix(f"{several}{wrapper}cell.")

    return affix


def _flax_places(a: Affix) -> list[Place]:
    """A layer has its cell as ``cell``; what its user made of cells has them under other names."""
    *path, _ = a.before.split(".")
    if path[-1:] != ["cell"]:
        return [Place(".".join(path), cell=True)] * 2
    *outer, last = path[:-1] or [""]
    layer = Place(".".join(path[:-1]))
    if last not in ("forward_rnn", "backward_rnn"):
        return [layer, layer]
    return [Place(".".join(outer), 0, int(last == "backward_rnn"), several=True), layer]


def _onnx(at: Layout, layer: int, direction: int) -> Affix:
    return Affix("", f"{f'_l{layer}' if at.several else ''}[{direction}]")


def _onnx_places(a: Affix) -> list[Place]:
    layer, _, direction = a.behind.removeprefix("_l").partition("[")
    return [Place(a.before[:-1], int(layer or 0), int(direction.removesuffix("]") or 0))]


def _onnx_unpack(name: str, a: Array) -> Tensors:
    """One tensor a direction, from one that has directions as its first axis.

    There is no place for an LSTM's P, which no other framework has, unless it changes nothing.
    """
    if re.fullmatch(rf"(?:.*\.)?P(?:_l{NUMBER})?", name, re.DOTALL):
        if a.any():
            raise ConversionError(
                f"onnx: {name} holds peepholes, by which gates read c; no other framework has "
                "such, and these are not zero"
            )
        return {}
    if a.ndim == 0 or len(a) not in (1, 2):
        raise ConversionError(f"onnx: {name}'s first axis must be 1 or 2, got {a.shape}")
    return {f"{name}[{d}]": part for d, part in enumerate(a)}


def _onnx_pack(arrays: Tensors) -> Tensors:
    together: dict[str, list[Array]] = {}
    for name, a in arrays.items():
        together.setdefault(name.partition("[")[0], []).append(a)
    return {name: np.stack(parts) for name, parts in together.items()}


_HAIKU_NAMES = {"RNN": "vanilla_rnn", "GRU": "gru", "LSTM": "lstm"}


def _haiku(at: Layout, layer: int, direction: int) -> Affix:
    return Affix(f"{_HAIKU_NAMES[at.kind]}{f'_{layer}' if layer else ''}/")


def _haiku_places(a: Affix) -> list[Place]:
    """By the module's name where it is the class's; by any other it is a GRU's, or no layer's.

    Any two Linears look like a VanillaRNN, and any one like an LSTM.
    """
    above, _, module = a.before[:-1].rpartition("/")
    name, _, number = re.sub(rf"_({NUMBER})$", r"#\1", module).partition("#")
    kind = next((kind for kind, known in _HAIKU_NAMES.items() if known == name), "")
    alone = Place(a.before[:-1], kind=kind or "GRU")
    return [Place(above, int(number or 0), kind=kind) if kind else alone, alone]


_TORCH = {"weight_ih": "G D", "weight_hh": "G H", "bias_ih": "G", "bias_hh": "G"}
_TORCH_FORMS = tuple(Form(kind, _TORCH, PAIR) for kind in KINDS)
_RESET_BEFORE = Form(
    "GRU", _TORCH, PAIR, reset_before=True, note_written="Elman's GRU has reset_after=False"
)
_PROJECTED = Form("LSTM", _TORCH | {"weight_hh": "G P", "weight_hr": "P H"}, PAIR)
_MLX = {"Wx": "G D", "Wh": "G H"}
_KERAS = {"kernel": "D G", "recurrent_kernel": "H G", "bias": "G"}
_CUDNN = _KERAS | {"bias": "2G"}
_LINEN = {f"i{gate}.kernel": "D H" for gate in "rzn"} | {f"h{gate}.kernel": "H H" for gate in "rzn"}
_NNX = {"dense_i.kernel": "D G", "dense_h.kernel": "H G"}
_EQUINOX = {"weight_ih": "G D", "weight_hh": "G H", "bias": "G"}
_ONNX = {"W": "G D", "R": "G H", "B": "2G"}
_VANILLA = {"linear/w": "D G", "linear_1/w": "H G", "linear/b": "G"}
_UPDATE_FIRST = ("update", "reset", "new")
_CARRY = "Flax carries an LSTM's state as (c, h), where others have (h, c)"


def _flax_lstm(forget: str) -> Form:
    """The tensors of Flax's LSTMCell, with its name for the forget gate's input weight."""
    tensors = {f"i{gate}.kernel": "D H" for gate in ("i", forget, "g", "o")}
    tensors |= {f"h{gate}.kernel": "H H" for gate in "ifgo"}
    tensors |= {f"h{gate}.bias": "H" for gate in "ifgo"}
    return Form("LSTM", tensors, ONE, BY_GATE, optional_bias=False, note=_CARRY)


_NNX_OPTIMIZED = Form("LSTM", _NNX | {"dense_h.bias": "G"}, ONE, optional_bias=False, note=_CARRY)

FRAMEWORKS = {
    "elman": _torch((*_TORCH_FORMS, _RESET_BEFORE, _PROJECTED)),
    "torch": _torch((*_TORCH_FORMS, _PROJECTED)),
    "oneflow": _torch((*_TORCH_FORMS, _PROJECTED)),
    "r-torch": _torch(_TORCH_FORMS, first=1, cells=False),
    "mlx": Framework(
        (
            Form("GRU", _MLX | {"b": "G", "bhn": "H"}, NEW),
            Form("RNN", {"Wxh": "G D", "Whh": "G H", "bias": "G"}, ONE),
            Form("LSTM", _MLX | {"bias": "G"}, ONE),
        ),
        _mlx,
        _mlx_places,
        cells=False,
    ),
    "keras": Framework(
        (
            Form(
                "GRU",
                _KERAS | {"bias": "2 G"},
                ROWS,
                order=_UPDATE_FIRST,
            ),
            Form(
                "GRU",
                _KERAS,
                ONE,
                order=_UPDATE_FIRST,
                reset_before=True,
                note_written="the Keras GRU has reset_after=False",
            ),
            Form("RNN", _KERAS, ONE),
            Form("LSTM", _KERAS, ONE),
            Form("GRU", _CUDNN, JOINED, AS_CUDNN, order=_UPDATE_FIRST, optional_bias=False),
            Form("LSTM", _CUDNN, JOINED, AS_CUDNN, optional_bias=False),
        ),
        _keras,
        _keras_places,
        separator="/",
        behind=r"(?::\d+)?",
        numbered=True,
        stacks=False,
    ),
    "flax-linen": Framework(
        (
            Form(
                "GRU",
                _LINEN | {f"i{gate}.bias": "H" for gate in "rzn"} | {"hn.bias": "H"},
                NEW,
                BY_GATE,
                optional_bias=False,
            ),
            Form(
                "RNN",
                {"i.kernel": "D H", "h.kernel": "H H", "i.bias": "H"},
                ONE,
                optional_bias=False,
            ),
            _flax_lstm("f"),
        ),
        _flax("layers_{}."),
        _flax_places,
        numbered=True,
    ),
    "flax-nnx": Framework(
        (
            *(
                Form(kind, _NNX | {"dense_i.bias": "G"}, ONE, optional_bias=False)
                for kind in ("GRU", "RNN")
            ),
            _flax_lstm("f_"),
            _NNX_OPTIMIZED,
        ),
        _flax("layers.{}."),
        _flax_places,
        numbered=True,
    ),
    "flax-nnx-optimized": Framework(
        (_NNX_OPTIMIZED,), _flax("layers.{}."), _flax_places, numbered=True
    ),
    "equinox": Framework(
        (Form("GRU", _EQUINOX | {"bias_n": "H"}, NEW), Form("LSTM", _EQUINOX, ONE)),
        _bare,
        _bare_places,
        layers=False,
    ),
    "onnx": Framework(
        (
            Form(
                "GRU",
                _ONNX,
                JOINED,
                order=_UPDATE_FIRST,
                note_written="the GRU node has linear_before_reset=1",
            ),
            Form(
                "GRU",
                _ONNX,
                JOINED,
                order=_UPDATE_FIRST,
                reset_before=True,
                note_written="the GRU node has linear_before_reset=0, the default",
            ),
            Form("RNN", _ONNX, JOINED),
            Form("LSTM", _ONNX, JOINED, order=("input", "output", "forget", "cell")),
        ),
        _onnx,
        _onnx_places,
        behind=rf"(?:_l{NUMBER})?(?:\[[01]\])?",
        cells=False,
        dropped=("P",),
        unpack=_onnx_unpack,
        pack=_onnx_pack,
    ),
    "haiku": Framework(
        (
            Form(
                "GRU",
                {"w_i": "D G", "w_h": "H G", "b": "G"},
                ONE,
                optional_bias=False,
                order=_UPDATE_FIRST,
                turned=("update",),
                reset_before=True,
            ),
            Form(
                "RNN",
                _VANILLA | {"linear_1/b": "G"},
                PAIR,
                optional_bias=False,
                nonlinearity="relu",
            ),
            Form("RNN", _VANILLA, ONE, optional_bias=False, nonlinearity="relu"),
            Form(
                "LSTM",
                {"linear/w": "D+H G", "linear/b": "G"},
                ONE,
                STACKED,
                optional_bias=False,
                order=("input", "cell", "forget", "output"),
                adds={"forget": 1},
                note="Haiku's forget gate is σ(a + 1); elsewhere that 1 is part of the biases, "
                "which rounds where there is only one of them",
            ),
        ),
        _haiku,
        _haiku_places,
        separator="/",
        cells=False,
        bidirectional=False,
    ),
}
