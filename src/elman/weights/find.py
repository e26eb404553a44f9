"""The recurrent layers among the tensors of a model, by their names and shapes."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elman.spec import Shape, Spec, check_weights
from elman.weights.files import as_array
from elman.weights.frameworks import (
    FRAMEWORKS,
    NUMBER,
    Affix,
    Array,
    ConversionError,
    Form,
    Framework,
    Layout,
    Place,
    Tensors,
)

Part = tuple[int, int]  # a layer and a direction of it


def entry(name: str) -> Framework:
    """The framework's entry in the table."""
    if not isinstance(name, str) or name not in FRAMEWORKS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConversionError(f"no framework {name!r}; there are {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]


@dataclass(frozen=True)
class Model:
    """What all names and shapes of a layer's tensors follow from.

    Attributes
    ----------
    framework : its name; form : of each direction's tensors.
    spec : sizes, layers, directions; cell : whether the names are a cell's.
    affixes : what stands around the names of each layer's and direction's tensors.
    prefix : what the names have before a layer's own, without the separator.
    joined : the prefixes of the layers that it was made of, where names alone leave it open.
    """

    framework: str
    form: Form
    spec: Spec
    cell: bool
    affixes: Mapping[Part, Affix]
    prefix: str = ""
    joined: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its name in errors."""
        return f"{self.framework} {self.spec}"

    @property
    def parts(self) -> Iterator[Part]:
        """Each layer and direction."""
        return itertools.product(range(self.spec.num_layers), range(self.spec.directions))

    @property
    def notes(self) -> list[str]:
        """What the tensors of this model do not tell."""
        form, always = self.form, self.form.nonlinearity
        notes = [form.note] if form.note else []
        if always:
            notes.append(f"{self.title} always applies {always}")
        if self.joined:
            notes.append(f"taken for layers of one another, by numbers and sizes: {self.joined}")
        return notes

    def shapes(self, layer: int, direction: int) -> dict[str, Shape]:
        """Full name and shape of one direction's tensors, in the order of the form's.

        Biases are among them, whether the model has any or not.
        """
        spec, affix = self.spec, self.affixes[layer, direction]
        size = spec.input_size if layer == 0 else spec.directions * spec.output_size
        return {affix.name(t): shape for t, shape in self.form.shapes(spec, size).items()}

    def stored(self, layer: int, direction: int) -> dict[str, Shape]:
        """Those that the model has."""
        shapes, biases = self.shapes(layer, direction), self.form.bias_names
        there = [self.spec.bias or t not in biases for t in self.form.tensors]
        return dict(itertools.compress(shapes.items(), there))

    def all_shapes(self) -> dict[str, Shape]:
        """The same for every layer and direction."""
        return {name: shape for part in self.parts for name, shape in self.stored(*part).items()}

    def difference(self, shapes: Mapping[str, Shape]) -> int:
        """How many of its tensors, and of the given ones, have no like among the others."""
        return len(self.all_shapes().items() ^ shapes.items())


@dataclass(frozen=True)
class Found:
    """A recurrent layer among the tensors of a model.

    Attributes
    ----------
    tensors : its arrays by their full names, as ``convert`` takes them.
    prefix : what its names have before a layer's own, such as "encoder.gru"; "" for nothing.
    spec : its sizes, layers and directions.
    cell : whether the names are a cell's.
    dtype : of every array.

    ``str`` says all but the tensors in words.
    """

    tensors: Tensors
    model: Model

    @property
    def prefix(self) -> str:
        """What its names have before a layer's own; "" for nothing."""
        return self.model.prefix

    @property
    def spec(self) -> Spec:
        """Its sizes, layers and directions; of an RNN, whatever its nonlinearity."""
        return self.model.spec

    @property
    def cell(self) -> bool:
        """Whether the names are a cell's."""
        return self.model.cell

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every array."""
        return next(iter(self.tensors.values())).dtype

    def __str__(self) -> str:
        return f"{self.prefix}: {describe(self.spec, self.cell, self.dtype)}".removeprefix(": ")


def describe(spec: Spec, cell: bool, dtype: np.dtype[Any], nonlinearity: str = "") -> str:
    """A layer in words."""
    parts = [
        f"{spec}{'Cell' if cell else ''}",
        "reset before the product" if spec.cell.gated else "",
        nonlinearity,
        counted(spec.num_layers, "layer"),
        counted(spec.directions, "direction"),
        f"input size {spec.input_size}",
        f"hidden size {spec.hidden_size}",
        f"projection size {spec.proj_size}" if spec.proj_size else "",
        "" if spec.bias else "no biases",
        str(dtype),
    ]
    return ", ".join(part for part in parts if part)


def counted(number: int, what: str) -> str:
    """The number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def find(tensors: Mapping[str, Any], source: str) -> list[Found]:
    """Find the recurrent layers in a whole model's tensors.

    Parameters
    ----------
    tensors : the model's arrays by name, as :func:`convert` takes a layer's. What is no recurrent
        layer's is passed over, whatever it is.
    source : the framework's name, as there.

    Returns
    -------
    The layers in the order of their first tensors. Layers that stand side by side under numbers, as
    Keras and Flax have them, are layers of their own here; ``convert`` takes the tensors of all
    that fit one another for those of one.

    Raises
    ------
    ConversionError : a layer's tensor is missing, misshapen, of another dtype than its others, or
        not floating-point.

    >>> import elman, elman.weights
    >>> gru = elman.GRU(10, 20, num_layers=2).state_dict()
    >>> model = {f"encoder.gru.{name}": w for name, w in gru.items()} | {"steps": 7}
    >>> for layer in elman.weights.find(model, "torch"):
    ...     print(layer)
    ...     converted = elman.weights.convert(layer.tensors, "torch", "mlx")
    encoder.gru: GRU, 2 layers, 1 direction, input size 10, hidden size 20, float32
    """
    check_names(tensors, source)
    names = [name for group in _groups(tensors, source).values() for name in group]
    arrays = {name: read(name, tensors[name], source) for name in names}
    found = layers(arrays, source)
    shapes = {name: a.shape for name, a in unpacked(arrays, source).items()}
    for layer in found:
        check_dtypes(layer.tensors, source)
        theirs = layer.model.all_shapes()
        given = {name: shapes.pop(name) for name in theirs if name in shapes}
        check_weights(layer.model.title, theirs, given, ConversionError)
    # Others are no matrices, and so of no layer that is called the same, such as Keras's ConvLSTM.
    lost = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if lost:
        raise ConversionError(
            f"{source}: {list(lost)} are called as a recurrent layer's tensors are, but are none's "
            f"by their shapes, {list(lost.values())}"
        )
    return found


# Tensors, as they are given


def check_names(tensors: Mapping[str, Any], source: str) -> None:
    """Raise ConversionError unless the tensors have names."""
    if not isinstance(tensors, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConversionError(f"{source}: expected arrays by name, got {type(tensors)}")
    for name in tensors:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConversionError(f"{source}: names must be strings, got {name!r}")


def read(name: str, tensor: Any, source: str) -> Array:
    """A tensor as an array."""
    try:
        return as_array(source, tensor)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConversionError(f"{source}: {name} is nothing that NumPy reads: {e}") from e


def check_dtypes(arrays: Mapping[str, Array], source: str) -> None:
    """Raise ConversionError unless all are of one floating-point dtype."""
    dtypes = {str(a.dtype): a.dtype for a in arrays.values()}
    if len(dtypes) > 1:
        raise ConversionError(f"{source}: tensors must be of one dtype, got {sorted(dtypes)}")
    for name, dtype in dtypes.items():
        if dtype.kind != "f" and name != "bfloat16":
            raise ConversionError(f"{source}: tensors must be floating-point, got {name}")


def unpacked(arrays: Mapping[str, Array], source: str) -> Tensors:
    """The arrays under the names that a framework's forms and affixes give."""
    unpack = entry(source).unpack
    return {inner: a for name, given in arrays.items() for inner, a in unpack(name, given).items()}


# Layers, by names and shapes


def expected(source: str) -> str:
    """What is looked for, in words."""
    framework = entry(source)
    layouts = [(form, layout) for form in framework.forms for layout in framework.layouts(form)]
    some = {framework.affix(layout, 0, 0).name(form.recurrent) for form, layout in layouts}
    return f"expected the weights of a recurrent layer, with one of {sorted(some)}"


def layers(arrays: Mapping[str, Array], source: str) -> list[Found]:
    """What is called and shaped as a layer, or nearly so."""
    unpack, origins, shapes = entry(source).unpack, dict[str, str](), dict[str, Shape]()
    for name, given in arrays.items():
        for inner, a in unpack(name, given).items():
            origins[inner], shapes[inner] = name, a.shape
    found: list[Found] = []
    for model in _models(shapes, source):
        names = {origins[name] for name in model.all_shapes() if name in origins}
        found.append(Found({n: a for n, a in arrays.items() if n in names}, model))
    order = {name: k for k, name in enumerate(arrays)}
    return sorted(found, key=lambda layer: order[next(iter(layer.tensors))])


def _groups(names: Iterable[str], source: str) -> dict[Affix, list[str]]:
    """Full names by what stands around the tensors' own, where one is a recurrent weight."""
    framework = entry(source)
    groups: dict[Affix, dict[str, str]] = {}
    for name in names:
        if split := framework.split(name):
            affix, tensor = split
            groups.setdefault(affix, {})[tensor] = name

    def has_recurrent(affix: Affix, tensors: dict[str, str]) -> bool:
        kinds = {place.kind for place in framework.places(affix)}
        possible = [form for form in framework.forms if kinds & {"", form.kind}]
        return any(form.recurrent in tensors for form in possible)

    return {
        affix: list(tensors.values())
        for affix, tensors in groups.items()
        if has_recurrent(affix, tensors)
    }


def _models(shapes: Mapping[str, Shape], source: str) -> list[Model]:
    """Each layer, from the likeliest of the places that its names leave open and that fits."""
    groups = _groups(shapes, source)
    places = {affix: entry(source).places(affix) for affix in groups}
    waiting, models = [*groups], list[Model]()
    levels = max(map(len, places.values()), default=0)
    for level in range(levels):
        last, together = level == levels - 1, dict[Place, list[Affix]]()
        for affix in waiting:
            layer = places[affix][level]._replace(layer=0, direction=0, kind="")
            together.setdefault(layer, []).append(affix)
        waiting = list[Affix]()
        for layer, affixes in together.items():
            parts = {places[a][level][1:3]: a for a in affixes}
            given = {name: shapes[name] for a in affixes for name in groups[a]}
            kinds = {places[a][level].kind for a in affixes}
            model = _recognise(source, layer._replace(kind=min(kinds)), parts, given)
            alike = len(kinds) == 1 and len(parts) == len(affixes) > int(layer.several)
            if model and (last or (alike and _holds(model, parts, given))):
                models.append(model)
            else:
                waiting += affixes
    return models


def _recognise(
    source: str, place: Place, parts: Mapping[Part, Affix], shapes: Mapping[str, Shape]
) -> Model | None:
    """The model of these parts whose names and shapes are the given ones, or come closest."""
    forms = [form for form in entry(source).forms if place.kind in ("", form.kind)]
    models = [model for form in forms if (model := _assume(source, form, place, parts, shapes))]
    return min(models, key=lambda model: model.difference(shapes), default=None)


def _assume(
    source: str,
    form: Form,
    place: Place,
    parts: Mapping[Part, Affix],
    shapes: Mapping[str, Shape],
) -> Model | None:
    """The model of this form that the parts may be; None where they cannot."""
    directions = 1 + max(direction for _, direction in parts)
    counted = itertools.takewhile(
        lambda k: any((k, d) in parts for d in range(directions)), itertools.count()
    )
    layers = sum(1 for _ in counted)
    if layers < 1 or (place.cell and form.projected):
        return None
    firsts = [parts[0, d] for d in range(directions) if (0, d) in parts]
    full = {tensor: firsts[-1].name(tensor) for tensor in form.tensors}
    D, H, P = form.measure({t: shapes[name] for t, name in full.items() if name in shapes})
    if min(D, H) < 1 or (form.projected and not 0 < P < H):
        return None
    biases = [affix.name(t) for affix in firsts for t in form.bias_names]
    bias = not form.optional_bias or any(name in shapes for name in biases)
    two, proj_size = directions == 2, P if form.projected else 0
    try:
        spec = Spec(form.cell, D, H, layers, bias, bidirectional=two, proj_size=proj_size)
    except ValueError as e:  # larger than any layer
        raise ConversionError(f"{source}: {e}") from e
    separator = entry(source).separator
    layout = Layout(form.kind, place.cell, layers > 1, directions)
    affixes = {
        part: parts.get(part) or entry(source).affix(layout, *part).under(place.prefix, separator)
        for part in itertools.product(range(layers), range(directions))
    }
    return Model(source, form, spec, place.cell, affixes, place.prefix)


def _holds(model: Model, parts: Mapping[Part, Affix], shapes: Mapping[str, Shape]) -> bool:
    """Whether the parts are all of one layer, and their matrices of its sizes."""
    biases = {a.name(t) for a in model.affixes.values() for t in model.form.bias_names}
    matrices = {n: shape for n, shape in model.all_shapes().items() if n not in biases}
    return {*parts} == {*model.parts} and matrices.items() <= shapes.items()


# Stacks whose layers are numbered where they stand


def join(found: Sequence[Found]) -> list[Found]:
    """The layers, with those for one that are numbered side by side and fit one another."""
    runs: dict[str, list[list[Found]]] = {}
    for layer in sorted(found, key=lambda layer: _numbered(layer)[1]):
        of_stem = runs.setdefault(_numbered(layer)[0], [])
        if of_stem and _follows(layer, of_stem[-1][-1]):
            of_stem[-1].append(layer)
        else:
            of_stem.append([layer])
    stacks = [run for of_stem in runs.values() for run in of_stem]
    order = {id(layer): k for k, layer in enumerate(found)}
    return [_stack(run) for run in sorted(stacks, key=lambda run: order[id(run[0])])]


def _numbered(layer: Found) -> tuple[str, int]:
    """A prefix without the number behind it, and that, which for the first may be left out."""
    match = re.fullmatch(rf"(.*?)[._]({NUMBER})", layer.prefix, re.DOTALL)
    stem, number = (match[1], int(match[2])) if match else (layer.prefix, 0)
    # Keras's older files have a layer's name twice, as in gru_1/gru_1.
    *above, last = layer.prefix.split("/")
    bare = stem.rpartition("/")[2]
    return "/".join([*(bare if part == last else part for part in above), bare]), number


def _follows(layer: Found, below: Found) -> bool:
    """Whether it is the next layer of the same stack, as far as names and shapes tell."""
    a, b = below.model, layer.model
    output = a.spec.directions * a.spec.output_size
    return (
        entry(a.framework).numbered
        and _numbered(layer)[1] == _numbered(below)[1] + 1
        and (b.form, b.spec, b.cell) == (a.form, replace(a.spec, input_size=output), a.cell)
        and layer.dtype == below.dtype
    )


def _stack(run: Sequence[Found]) -> Found:
    """One layer of several."""
    first = run[0].model
    if len(run) == 1:
        return run[0]
    affixes = {(k, d): a for k, one in enumerate(run) for (_, d), a in one.model.affixes.items()}
    spec = replace(first.spec, num_layers=len(run))
    # The list that Flax keeps a Sequential's layers in is no layer's name.
    listed = re.fullmatch(r"(?:(.*)\.)?layers[._]0", first.prefix, re.DOTALL)
    prefix = listed[1] or "" if listed else first.prefix
    joined = () if listed else tuple(layer.prefix for layer in run)
    model = replace(first, spec=spec, cell=False, affixes=affixes, prefix=prefix, joined=joined)
    return Found({name: a for one in run for name, a in one.tensors.items()}, model)
