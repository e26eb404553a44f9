"""From a framework's tensors to the canonical ones, and back."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from elman.spec import WEIGHTS, Shape, Spec, Weights, check_weights, weight_names
from elman.weights.find import (
    Found,
    Model,
    check_dtypes,
    check_names,
    entry,
    expected,
    join,
    layers,
    read,
    unpacked,
)
from elman.weights.frameworks import (
    APART,
    FRAMEWORKS,
    RESETS,
    Array,
    ConversionError,
    Form,
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
    arguments : what Elman's class has to be told for the layer: its name as "class", and the
        arguments of its constructor, those apart that weights do not tell.
    """

    def __init__(
        self,
        tensors: Mapping[str, Array],
        folded: bool,
        notes: list[str],
        arguments: dict[str, Any],
    ) -> None:
        super().__init__(tensors)
        self.folded, self.notes, self.arguments = folded, notes, arguments


@dataclass
class Canonical:
    """Weights as PyTorch has them; every framework's are read into this and written from it.

    Attributes
    ----------
    spec : its cell, sizes, layers, directions; of an RNN, whatever its nonlinearity.
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

    @property
    def resets_before(self) -> bool:
        """Whether it is the GRU whose reset gate comes before the recurrent product."""
        return self.spec.cell.gated is not None


def convert(
    tensors: Mapping[str, Any],
    source: str,
    target: str,
    *,
    cell: bool | None = None,
    reset_after: bool | None = None,
) -> Converted:
    """Give a recurrent layer's weights the names, shapes and order of another framework.

    Parameters
    ----------
    tensors : the source's arrays by name, anything that NumPy reads; docs/weights.md lists every
        framework's names.
    source, target : "elman", "torch", "oneflow", "r-torch", "mlx", "keras", "flax-linen",
        "flax-nnx", "flax-nnx-optimized" (its OptimizedLSTMCell, which "flax-nnx" reads too),
        "equinox", "onnx" or "haiku".
    cell : whether the answer is a cell's, such as GRUCell's, or a layer's. Default: as the
        source's, or what the target has.
    reset_after : whether the source's GRU applies its reset gate after the recurrent product.
        Default: what its tensors tell; yes, where they do not.

    Returns
    -------
    A dictionary of new NumPy arrays, of the dtype that was given, with ``folded``, ``notes`` and
    ``arguments``.

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
    entry(target)  # a name that is wrong is the first thing to say
    return from_canonical(to_canonical(tensors, source, reset_after), target, cell=cell)


# From a framework's tensors to the canonical ones


def to_canonical(
    tensors: Mapping[str, Any], source: str, reset_after: bool | None = None
) -> Canonical:
    """Read a framework's tensors; `reset_after` is that of :func:`convert`.

    Raises ConversionError for tensors that are missing, unexpected, misshapen or of mixed dtypes.

    >>> import elman, elman.weights
    >>> weights = elman.GRU(10, 20, num_layers=2, bidirectional=True).state_dict()
    >>> canonical = elman.weights.to_canonical(weights, "torch")
    >>> canonical.spec.num_layers, canonical.spec.directions, canonical.dtype.name
    (2, 2, 'float32')
    """
    entry(source)
    check_names(tensors, source)
    given = {name: read(name, tensor, source) for name, tensor in tensors.items()}
    check_dtypes(given, source)
    arrays, model = unpacked(given, source), _only(layers(given, source), given, source)
    shapes = {name: a.shape for name, a in arrays.items()}
    check_weights(model.title, model.all_shapes(), shapes, ConversionError)
    granted: list[str] = []
    if reset_after is not None:
        model = _resetting(model, reset_after)
    elif not model.form.reset_before and _alike(model, reset_before=True):
        granted.append(f"{model.title}: taken for reset_after=True, which its tensors do not tell")
    form = model.form
    canonical = Canonical(model.spec, {}, model.cell, form.nonlinearity, granted + model.notes)
    dtype = next(iter(arrays.values())).dtype
    for part in model.parts:
        w = form.restore(_arrays_or_zeros(arrays, model.shapes(*part), dtype))
        if not model.spec.bias:
            w = w._replace(b_ih=None, b_hh=None)
        for name, a in zip(canonical.names(*part), w, strict=True):
            if a is not None:
                canonical.weights[name] = np.array(a, order="C")
    return canonical


def _only(found: Sequence[Found], given: Iterable[str], source: str) -> Model:
    """The one layer that was found."""
    joined = join(found)
    if len(joined) == 1:
        return joined[0].model
    if joined:
        raise ConversionError(
            f"{source}: expected the weights of one layer, got those of {len(joined)}, which are "
            f"not one another's: {[layer.prefix for layer in joined]}; elman.weights.find gives "
            "each"
        )
    raise ConversionError(f"{source}: {expected(source)}; got {list(given)[:8]}")


def _arrays_or_zeros(
    arrays: Mapping[str, Array], shapes: Mapping[str, Shape], dtype: Any
) -> list[Array]:
    """The arrays of these names, zeros for those that there are not."""
    return [arrays[n] if n in arrays else np.zeros(s, dtype) for n, s in shapes.items()]


def _resetting(model: Model, after: bool) -> Model:
    """The model of the GRU that is asked for, whose tensors are the same."""
    if model.form.kind != "GRU":
        raise ConversionError(f"{model.title}: reset_after is of a GRU")
    if alike := _alike(model, reset_before=not after):
        return alike
    raise ConversionError(f"{model.title}: there is none of reset_after={after} with these tensors")


def _alike(model: Model, *, reset_before: bool) -> Model | None:
    """The model of that GRU, if there is one, whose tensors are the same."""
    for form in entry(model.framework).forms:
        if form.kind == model.form.kind == "GRU" and form.reset_before == reset_before:
            other = replace(model, form=form, spec=replace(model.spec, cell=form.cell))
            if other.all_shapes() == model.all_shapes():
                return other
    return None


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
    folded, alike = False, model.form.reset_before == canonical.resets_before
    for part in model.parts:
        w = Weights(*map(canonical.weights.get, canonical.names(*part)))
        if not canonical.spec.bias:
            none = np.zeros(len(w.w_ih), canonical.dtype)
            w = w._replace(b_ih=none, b_hh=none)
        if not alike:
            _check_diagonal(canonical, model, w)
        w, added = _fold(model, w, canonical.resets_before)
        folded = folded or added
        there = model.stored(*part)
        pairs = zip(model.shapes(*part), model.form.store(w), strict=True)
        tensors.update({name: a for name, a in pairs if name in there})
    packed = FRAMEWORKS[target].pack(tensors)
    arrays = {n: np.array(a, order="C") for n, a in packed.items()}
    return Converted(arrays, folded, notes, _arguments(canonical, model))


def _arguments(canonical: Canonical, model: Model) -> dict[str, Any]:
    """The class and its arguments that make Elman's of the layer, as the model holds it."""
    spec, kind = model.spec, model.spec.cell.kind
    given: dict[str, Any] = {
        "class": f"{kind}{'Cell' if model.cell else ''}",
        "input_size": spec.input_size,
        "hidden_size": spec.hidden_size,
        "bias": spec.bias,
    }
    if not model.cell:
        given |= {"num_layers": spec.num_layers, "bidirectional": spec.bidirectional}
    if kind == "LSTM" and not model.cell:
        given["proj_size"] = spec.proj_size
    if kind == "GRU":
        given["reset_after"] = not model.form.reset_before
    if canonical.nonlinearity:
        given["nonlinearity"] = canonical.nonlinearity
    return given


def _check_diagonal(canonical: Canonical, model: Model, w: Weights) -> None:
    """Raise unless W_hn (r * h) is r * (W_hn h), which takes a diagonal W_hn."""
    w_hn = np.split(w.w_hh, len(model.form.cell.gates))[-1]
    if w_hn[~np.eye(len(w_hn), dtype=bool)].any():
        raise ConversionError(
            f"{model.title}: applies its reset gate {RESETS[model.form.cell.name]}, and this one "
            f"{RESETS[canonical.spec.cell.name]}; no weights make them the same unless W_hn is "
            "diagonal"
        )


def _plan(canonical: Canonical, target: str, cell: bool | None) -> tuple[Model, list[str]]:
    """The model to write, and what to say of it; raises where the target has no such thing."""
    framework, spec = entry(target), canonical.spec
    written = (form for form in framework.forms if form.parts.cut)
    forms = [form for form in written if form.kind == spec.cell.kind]
    if not forms:
        raise ConversionError(f"{target}: has no {spec}")
    always, known = forms[0].nonlinearity, canonical.nonlinearity
    if always and known not in ("", always):
        raise ConversionError(f"{target} {spec}: always applies {always}, and this one {known}")
    as_cell = _as_cell(canonical, target, cell)
    one = f"{target} {spec}{'Cell' if as_cell else ''}"
    layout = Layout(spec.cell.kind, as_cell, spec.num_layers > 1, spec.directions)
    if layout not in framework.layouts(forms[0]):
        raise ConversionError(
            f"{one}: cannot hold num_layers={spec.num_layers}, directions={spec.directions}; "
            "convert one layer, or one direction, at a time"
        )
    projected = spec.proj_size > 0
    holding = [f for f in forms if f.projected == projected and layout in framework.layouts(f)]

    def differs(form: Form) -> bool:
        return form.reset_before != canonical.resets_before

    form = min(holding, key=differs, default=None)  # the first, of one kind if there is
    if form is None:
        raise ConversionError(
            f"{one}: has no projection, so that its h is o * tanh(c), and this one has "
            f"h = W_hr (o * tanh(c)), with proj_size={spec.proj_size}"
        )
    notes = list(canonical.notes)
    if not spec.bias and not form.optional_bias:
        spec = replace(spec, bias=True)
        notes.append(f"{target}'s {spec} always has biases; those it gets have no effect")
    parts = itertools.product(range(spec.num_layers), range(spec.directions))
    affixes = {part: framework.affix(layout, *part) for part in parts}
    model = Model(target, form, spec, as_cell, affixes)
    if form.note_written:
        notes.append(form.note_written)
    return model, [*dict.fromkeys(notes + model.notes)]


def _as_cell(canonical: Canonical, target: str, cell: bool | None) -> bool:
    """Whether to write a cell: as asked for, else as the source's, else what there is."""
    framework = FRAMEWORKS[target]
    if cell is None:
        return framework.cells if canonical.cell else not framework.layers
    if not (framework.cells if cell else framework.layers):
        raise ConversionError(f"{target}: has no {'cells' if cell else 'layers, only cells'}")
    return cell


def _fold(model: Model, w: Weights, resets_before: bool) -> tuple[Weights, bool]:
    """Add to b_ih what of b_hh has no place of its own, and say whether that was anything.

    What the class itself adds stays in b_hh, and so do the gates in ``APART``. Of a GRU that resets
    before the product b_hn is a summand like others, and is one where the target multiplies it.
    """
    form, named = model.form, APART.get(model.form.kind, {})

    def of(keeps: Callable[[str], bool]) -> Array:
        return np.repeat([keeps(gate) for gate in form.cell.gates], model.spec.hidden_size)

    def is_kept(gate: str) -> bool:
        if form.biases.holds == "all":
            return gate not in named or form.reset_before == resets_before
        return form.biases.holds == "apart" and gate in named and not resets_before

    if form.biases.holds == "none" and not resets_before and w.b_hh[of(named.__contains__)].any():
        raise ConversionError(
            f"{model.title}: has no place for a recurrent bias of the {' or '.join(named)} gate, "
            f"{' or '.join(named.values())}, and the one given is not zero"
        )
    own, kept = form.added(w.b_hh), of(is_kept)
    moves, stays = w.b_hh - own, own
    moves[kept], stays[kept] = 0, w.b_hh[kept]
    if not moves.any():
        return w, False
    return w._replace(b_ih=w.b_ih + moves, b_hh=stays), True
