"""From a framework's tensors to the canonical ones, and back."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from elman.spec import WEIGHTS, Shape, Spec, Weights, check_weights, weight_names
from elman.weights.frameworks import (
    APART,
    FRAMEWORKS,
    Array,
    ConversionError,
    Form,
    Framework,
    Layout,
    Tensors,
)


class Converted(Tensors):
    """Arrays under their new names, and what there is to know of them.

    Attributes
    ----------
    folded : whether biases were added up, which rounds each sum. If not, every value is one that
        was given, at most negated, or one that the framework adds without storing it: the 1 of
        Haiku's forget gate, and 0 for a bias that there is not.
    notes : sentences on what weights alone do not tell.
    """

    def __init__(self, tensors: Mapping[str, Array], folded: bool, notes: list[str]) -> None:
        super().__init__(tensors)
        self.folded, self.notes = folded, notes


@dataclass
class Canonical:
    """Weights as PyTorch has them; every framework's are read into this and written from it.

    Attributes
    ----------
    spec : sizes, layers, directions; of an RNN, whatever its nonlinearity.
    weights : arrays by PyTorch's names, of one dtype.
    cell : whether they are a cell's, whose names have no suffix.
    nonlinearity : an RNN's, "tanh" or "relu", where it is known; weights do not tell.
    notes : what the source's weights alone do not tell.
    """

    spec: Spec
    weights: Tensors
    cell: bool = False
    nonlinearity: str = ""
    notes: list[str] = field(default_factory=lambda: [])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every array."""
        return next(iter(self.weights.values())).dtype

    def names(self, layer: int, direction: int) -> list[str]:
        """PyTorch's names of one direction's weights."""
        return list(WEIGHTS) if self.cell else weight_names(layer, direction)


def convert(
    tensors: Mapping[str, Any], source: str, target: str, *, cell: bool | None = None
) -> Converted:
    """Give a recurrent layer's weights the names, shapes and order of another framework.

    Parameters
    ----------
    tensors : the source's arrays by name, anything that NumPy reads; docs/weights.md lists every
        framework's names.
    source, target : "torch", "oneflow", "r-torch", "mlx", "keras", "flax-linen", "flax-nnx",
        "flax-nnx-optimized" (its OptimizedLSTMCell, which "flax-nnx" reads too), "equinox", "onnx"
        or "haiku".
    cell : whether the answer is a cell's, such as GRUCell's, or a layer's. Default: as the
        source's, or what the target has.

    Returns
    -------
    A dictionary of new NumPy arrays, of the dtype that was given, with ``folded`` and ``notes``.

    Raises
    ------
    ConversionError : a ValueError that says which tensor is missing, unexpected, misshapen or of
        another dtype, or what the target cannot represent.

    >>> import elman, elman.weights
    >>> weights = elman.GRU(10, 20).state_dict()
    >>> converted = elman.weights.convert(weights, source="torch", target="mlx")
    >>> {name: a.shape for name, a in converted.items()}
    {'Wx': (60, 10), 'Wh': (60, 20), 'b': (60,), 'bhn': (20,)}
    >>> converted.folded  # MLX has one bias for r and z, PyTorch has two
    True
    """
    _entry(target)  # a name that is wrong is the first thing to say
    return from_canonical(to_canonical(tensors, source), target, cell=cell)


def _entry(name: str) -> Framework:
    if not isinstance(name, str) or name not in FRAMEWORKS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConversionError(f"no framework {name!r}; there are {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]


# From a framework's tensors to the canonical ones


@dataclass(frozen=True)
class _Model:
    """What all names and shapes of a framework's tensors follow from."""

    framework: str
    form: Form
    layout: Layout
    spec: Spec

    @property
    def title(self) -> str:
        return f"{self.framework} {self.spec}"

    @property
    def parts(self) -> Iterator[tuple[int, int]]:
        """Each layer and direction."""
        return itertools.product(range(self.spec.num_layers), range(self.spec.directions))

    @property
    def notes(self) -> list[str]:
        """What the tensors of this model do not tell."""
        form, always = self.form, self.form.nonlinearity
        notes = [form.note] if form.note else []
        if always:
            notes.append(f"{self.title} always applies {always}")
        if form.note_unbiased and not self.spec.bias:
            notes.append(form.note_unbiased)
        return notes

    def shapes(self, layer: int, direction: int) -> dict[str, Shape]:
        """Full name and shape of one direction's tensors, in the order of the form's.

        Biases are among them, whether the model has any or not.
        """
        spec, address = self.spec, FRAMEWORKS[self.framework].address
        size = spec.input_size if layer == 0 else spec.directions * spec.output_size
        shapes = self.form.shapes(spec, size)
        return {address(t, self.layout, layer, direction): s for t, s in shapes.items()}

    def stored(self, layer: int, direction: int) -> dict[str, Shape]:
        """Those that the model has."""
        shapes, biases = self.shapes(layer, direction), self.form.bias_names
        there = [self.spec.bias or t not in biases for t in self.form.tensors]
        return dict(itertools.compress(shapes.items(), there))

    def all_shapes(self) -> dict[str, Shape]:
        """The same for every layer and direction."""
        return {name: shape for part in self.parts for name, shape in self.stored(*part).items()}


def to_canonical(tensors: Mapping[str, Any], source: str) -> Canonical:
    """Read a framework's tensors.

    Raises ConversionError for tensors that are missing, unexpected, misshapen or of mixed dtypes,
    and for a GRU that PyTorch's equations cannot express.

    >>> import elman, elman.weights
    >>> weights = elman.GRU(10, 20, num_layers=2, bidirectional=True).state_dict()
    >>> canonical = elman.weights.to_canonical(weights, "torch")
    >>> canonical.spec.num_layers, canonical.spec.directions, canonical.dtype.name
    (2, 2, 'float32')
    """
    arrays = _entry(source).unpack(_arrays(tensors, source))
    shapes = {name: a.shape for name, a in arrays.items()}
    model = _recognise(source, shapes)
    check_weights(model.title, model.all_shapes(), shapes, ConversionError)
    form = model.form
    canonical = Canonical(model.spec, {}, model.layout.cell, form.nonlinearity, model.notes)
    dtype = next(iter(arrays.values())).dtype
    for part in model.parts:
        w = form.restore(_arrays_or_zeros(arrays, model.shapes(*part), dtype))
        if form.reset_before:
            _check_diagonal(model, w)
        if not model.spec.bias:
            w = w._replace(b_ih=None, b_hh=None)
        for name, a in zip(canonical.names(*part), w, strict=True):
            if a is not None:
                canonical.weights[name] = np.array(a, order="C")
    return canonical


def _arrays_or_zeros(
    arrays: Mapping[str, Array], shapes: Mapping[str, Shape], dtype: Any
) -> list[Array]:
    """The arrays of these names, zeros for those that there are not."""
    return [arrays[n] if n in arrays else np.zeros(s, dtype) for n, s in shapes.items()]


def _arrays(tensors: Mapping[str, Any], source: str) -> Tensors:
    """The tensors as NumPy arrays, which must be of one floating-point dtype."""
    if not isinstance(tensors, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConversionError(f"{source}: expected arrays by name, got {type(tensors)}")
    arrays: Tensors = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConversionError(f"{source}: names must be strings, got {name!r}")
        try:
            arrays[name] = np.asarray(tensor)
        except (TypeError, ValueError, RuntimeError) as e:
            raise ConversionError(f"{source}: {name} is nothing that NumPy reads: {e}") from e
    dtypes = {str(a.dtype): a.dtype for a in arrays.values()}
    if len(dtypes) > 1:
        raise ConversionError(f"{source}: tensors must be of one dtype, got {sorted(dtypes)}")
    for name, dtype in dtypes.items():
        if dtype.kind != "f" and name != "bfloat16":
            raise ConversionError(f"{source}: tensors must be floating-point, got {name}")
    return arrays


def _recognise(source: str, shapes: Mapping[str, Shape]) -> _Model:
    """The model whose names and shapes are the given ones, or come closest."""
    entry = FRAMEWORKS[source]
    pairs = [(form, layout) for form in entry.forms for layout in entry.layouts(form)]
    models = [m for form, layout in pairs if (m := _assume(source, form, layout, shapes))]
    if not models:
        some = {entry.address(form.recurrent, layout, 0, 0) for form, layout in pairs}
        raise ConversionError(
            f"{source}: expected the weights of a recurrent layer, with one of {sorted(some)}; "
            f"got {list(shapes)[:8]}"
        )
    return min(models, key=lambda model: len(model.all_shapes().items() ^ shapes.items()))


def _assume(source: str, form: Form, layout: Layout, shapes: Mapping[str, Shape]) -> _Model | None:
    """The model of this form and layout that the shapes may be; None where they cannot."""
    last = layout.directions - 1

    def full(tensor: str, layer: int = 0, direction: int = last) -> str:
        return FRAMEWORKS[source].address(tensor, layout, layer, direction)

    counted = itertools.takewhile(lambda k: full(form.recurrent, k) in shapes, itertools.count())
    layers = sum(1 for _ in counted) if layout.several else 1
    D, H, P = form.measure({t: shapes[full(t)] for t in form.tensors if full(t) in shapes})
    if layers < 1 or min(D, H) < 1 or (form.projected and not 0 < P < H):
        return None
    biases = [full(t, 0, d) for t in form.bias_names for d in (0, last)]
    bias = not form.optional_bias or any(name in shapes for name in biases)
    two, proj_size = layout.directions == 2, P if form.projected else 0
    try:
        spec = Spec(form.cell, D, H, layers, bias, bidirectional=two, proj_size=proj_size)
    except ValueError as e:  # larger than any layer
        raise ConversionError(f"{source}: {e}") from e
    return _Model(source, form, layout, spec)


def _check_diagonal(model: _Model, w: Weights) -> None:
    """Raise unless W_hn (r * h) is r * (W_hn h), which takes a diagonal W_hn."""
    w_hn = np.split(w.w_hh, len(model.form.cell.gates))[-1]
    if w_hn[~np.eye(len(w_hn), dtype=bool)].any():
        raise ConversionError(
            f"{model.title}: applies its reset gate before the recurrent product, W_hn (r * h), "
            "and PyTorch after it, r * (W_hn h + b_hn); no weights make them the same unless W_hn "
            "is diagonal"
        )


# From the canonical tensors to a framework's


def from_canonical(canonical: Canonical, target: str, *, cell: bool | None = None) -> Converted:
    """Write a framework's tensors; the arguments and errors are those of :func:`convert`.

    >>> import elman, elman.weights
    >>> canonical = elman.weights.to_canonical(elman.RNN(10, 20).state_dict(), "torch")
    >>> list(elman.weights.from_canonical(canonical, "r-torch"))
    ['weight_ih_l1', 'weight_hh_l1', 'bias_ih_l1', 'bias_hh_l1']
    """
    model, notes = _plan(canonical, target, cell)
    tensors: Tensors = {}
    folded = False
    for part in model.parts:
        w = Weights(*map(canonical.weights.get, canonical.names(*part)))
        if not canonical.spec.bias:
            none = np.zeros(len(w.w_ih), canonical.dtype)
            w = w._replace(b_ih=none, b_hh=none)
        w, added = _fold(model, w)
        folded = folded or added
        if model.form.reset_before:
            _check_diagonal(model, w)
        there = model.stored(*part)
        pairs = zip(model.shapes(*part), model.form.store(w), strict=True)
        tensors.update({name: a for name, a in pairs if name in there})
    packed = FRAMEWORKS[target].pack(tensors)
    return Converted({n: np.array(a, order="C") for n, a in packed.items()}, folded, notes)


def _plan(canonical: Canonical, target: str, cell: bool | None) -> tuple[_Model, list[str]]:
    """The model to write, and what to say of it; raises where the target has no such thing."""
    entry, spec = _entry(target), canonical.spec
    forms = [form for form in entry.forms if form.kind == spec.cell.kind]
    if not forms:
        raise ConversionError(f"{target}: has no {spec}")
    always, known = forms[0].nonlinearity, canonical.nonlinearity
    if always and known not in ("", always):
        raise ConversionError(f"{target} {spec}: always applies {always}, and this one {known}")
    as_cell = _as_cell(canonical, target, cell)
    one = f"{target} {spec}{'Cell' if as_cell else ''}"
    layout = Layout(spec.cell.kind, as_cell, spec.num_layers > 1, spec.directions)
    if layout not in entry.layouts(forms[0]):
        raise ConversionError(
            f"{one}: cannot hold num_layers={spec.num_layers}, directions={spec.directions}; "
            "convert one layer, or one direction, at a time"
        )
    projected = spec.proj_size > 0
    holding = (f for f in forms if f.projected == projected and layout in entry.layouts(f))
    form = next(holding, None)
    if form is None:
        raise ConversionError(
            f"{one}: has no projection, so that its h is o * tanh(c), and this one has "
            f"h = W_hr (o * tanh(c)), with proj_size={spec.proj_size}"
        )
    notes = list(canonical.notes)
    if not spec.bias and not form.optional_bias:
        spec = replace(spec, bias=True)
        notes.append(f"{target}'s {spec} always has biases; those it gets have no effect")
    model = _Model(target, form, layout, spec)
    return model, [*dict.fromkeys(notes + model.notes)]


def _as_cell(canonical: Canonical, target: str, cell: bool | None) -> bool:
    """Whether to write a cell: as asked for, else as the source's, else what there is."""
    entry = FRAMEWORKS[target]
    if cell is None:
        return entry.cells if canonical.cell else not entry.layers
    if not (entry.cells if cell else entry.layers):
        raise ConversionError(f"{target}: has no {'cells' if cell else 'layers, only cells'}")
    return cell


def _fold(model: _Model, w: Weights) -> tuple[Weights, bool]:
    """Add to b_ih what of b_hh has no place of its own, and say whether that was anything.

    What the class itself adds stays in b_hh, and so do the gates in ``APART``.
    """
    form = model.form
    if form.biases.holds == "all":
        return w, False
    own = form.added(w.b_hh)
    apart = APART.get(form.kind, {})
    is_apart = np.repeat([gate in apart for gate in form.cell.gates], model.spec.hidden_size)
    if form.biases.holds == "none" and w.b_hh[is_apart].any():
        raise ConversionError(
            f"{model.title}: has no place for a recurrent bias of the {' or '.join(apart)} gate, "
            f"{' or '.join(apart.values())}, and the one given is not zero"
        )
    moves, stays = w.b_hh - own, own
    moves[is_apart], stays[is_apart] = 0, w.b_hh[is_apart]
    if not moves.any():
        return w, False
    return w._replace(b_ih=w.b_ih + moves, b_hh=stays), True
