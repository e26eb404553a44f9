"""A model as one C header."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# (methods of arrays of any dtype are partly untyped)

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from string import Template
from textwrap import fill, indent
from typing import Any

import numpy as np

import elman
from elman.engine import Array
from elman.export.layers import Conv1d, Linear, Softmax
from elman.export.model import Model, Recurrent
from elman.spec import Cell, Weights, weight_names

#: Words that a name must not be, as C or C++ has them.
_TAKEN = (
    "auto|bool|break|case|char|class|const|continue|default|delete|do|double|else|enum|extern|false|"
    "float|for|goto|if|inline|int|long|namespace|new|operator|private|protected|public|register|"
    "return|short|signed|sizeof|static|struct|switch|template|this|throw|true|try|typedef|typename|"
    "union|unsigned|using|virtual|void|volatile|while|elman"
)


def header(model: Model, name: str, weights_apart: bool = False) -> str:
    """The model as the text of one C header, for C99 and C++11.

    Parameters
    ----------
    model : what to write.
    name : what its names begin with, a C identifier such as "amp".
    weights_apart : leave the weights out. ``amp_init`` then takes them, as :func:`weights` gives
        them. Default: they stand in the header as constants.

    The header gives, for the name "amp"::

        AMP_INPUTS, AMP_OUTPUTS                  values of a step's input and output
        amp_state s;                             all that is carried; its fields can be read and set
        amp_init(&s);                            or amp_init(&s, weights)
        amp_step(&s, in, out);                   one step
        amp_run(&s, in, out, steps);             many
        amp_reset(&s);                           begin anew

    and the bits of ``model(x)``. Raises ValueError for a name that is no identifier, and for
    weights that are not finite.

    >>> import elman, elman.export
    >>> model = elman.export.Model([elman.GRU(1, 8, seed=0)])
    >>> text = elman.export.header(model, "amp")
    >>> print(text[: text.index("written")])
    /* amp: GRU(1, 8),
    """
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or re.fullmatch(_TAKEN, name):
        raise ValueError(f"header: name must be a C identifier of ASCII letters, got {name!r}")
    written = _Written(model, "s->weights" if weights_apart else f"{name}_weights")
    numbers = _finite(written.weights)
    fields = {
        "name": name,
        "NAME": name.upper(),
        "inputs": model.input_size,
        "outputs": model.output_size,
        "count": numbers.size,
        "weights": "" if weights_apart else _constants(name, numbers),
        "state": _lines((["const float *weights;"] if weights_apart else []) + written.state),
        "reset": _lines(written.reset),
        "init": _INIT[weights_apart].substitute(name=name, NAME=name.upper()),
        "before": "",
        "step": _lines(written.step),
        "eight": "",
    }
    if written.head:
        fields |= {each: text.substitute(fields | written.head) for each, text in _HEAD.items()}
    title = fill(
        f"{name}: {', '.join(map(repr, model.layers))}, written by Elman {elman.__version__}.",
        95,
        subsequent_indent="   ",
    )
    layers, text = (files("elman.export").joinpath(f).read_text() for f in ("layers.h", "model.h"))
    return f"/* {title} */\n\n{layers}\n{Template(text).substitute(fields)}"


def weights(model: Model) -> bytes:
    """The weights of a model for a header that was written with `weights_apart`.

    They are float32, the lowest byte first, in an order of the header's own. Raises ValueError for
    weights that are not finite.

    >>> import elman, elman.export
    >>> len(elman.export.weights(elman.export.Model([elman.GRU(1, 8, seed=0)])))
    1056
    """
    return _finite(_Written(model, "").weights).astype("<f4").tobytes()


_INIT = {
    False: Template("""\
/* Before all else. */
static inline void ${name}_init(${name}_state *s) { ${name}_reset(s); }
"""),
    True: Template("""\
/* Before all else: the ${NAME}_WEIGHTS weights, which must stay where they are. */
static inline void ${name}_init(${name}_state *s, const float *weights) {
  s->weights = weights;
  ${name}_reset(s);
}
"""),
}


#: Of a recurrent layer before a last one that is Linear and has few rows: too few to be summed side
#: by side, so that eight steps are.
_FEW = 7
_HEAD = {
    "before": Template("""\
/* A step, but for the last layer. */
static inline void ${name}_before(${name}_state *s, const float *in) {
${step}}

"""),
    "step": Template("""\
  ${name}_before(s, in);
  elman_linear(${w}, ${h}, ${D}, ${rows}, out);
"""),
    "eight": Template("""\
  float h[8 * ${D}];
  for (; steps >= 8; steps -= 8) {
    for (i = 0; i < 8; ++i, in += ${NAME}_INPUTS) {
      ${name}_before(s, in);
      elman_copy(h + i * ${D}, ${h}, ${D});
    }
    elman_linear_eight(${w}, h, ${D}, ${rows}, out);
    out += 8 * ${NAME}_OUTPUTS;
  }
"""),
}


class _Written:
    """What the layers of a model are in C, one behind the other.

    Attributes
    ----------
    weights : of all of them, in the order of ``layers.h``.
    state, reset, step : lines of the state's fields, and of what the functions do.
    head : what ``_HEAD`` says of a last layer that `step` is then without, or nothing.
    """

    def __init__(self, model: Model, at: str) -> None:
        self._at = at
        self._work = self._count = 0
        self.weights: list[Array] = []
        self.state: list[str] = []
        self.reset: list[str] = []
        self.head: dict[str, Any] = {}
        calls: list[str] = []
        values, size = "in", model.input_size
        buffers: list[str] = []
        recurrent = 0
        for k, (layer, initial) in enumerate(zip(model.layers, model.initial, strict=True)):
            if isinstance(layer, Recurrent):
                spec = layer.spec
                for j in range(spec.num_layers):
                    calls.append(
                        self._recurrent(layer, j, recurrent, values, [a[j] for a in initial])
                    )
                    values, size = f"s->h{recurrent}", spec.output_size
                    recurrent += 1
                continue
            to = f"y{k}"
            if isinstance(layer, Conv1d):
                calls.append(self._conv1d(layer, k, values, to))
                size = layer.output_size
            elif isinstance(layer, Linear):
                w, rows = self._take([layer.weight.T, layer.bias]), layer.output_size
                last = k == len(model.layers) - 1
                if last and values.startswith("s->h") and rows <= _FEW:
                    self.head = {"w": w, "h": values, "D": size, "rows": rows}
                    break
                calls.append(f"elman_linear({w}, {values}, {size}, {rows}, {to});")
                size = rows
            elif isinstance(layer, Softmax):
                calls.append(f"elman_softmax_all({values}, {size}, work, {to});")
                self._work = max(self._work, size)
            else:
                calls.append(f"elman_{layer.name}_all({values}, {size}, {to});")
            buffers.append(f"{to}[{size}]")
            values = to
        if self._work:
            buffers.insert(0, f"work[{self._work}]")
        if not self.state:
            self.state, self.reset = ["char none;"], ["s->none = 0;"]
            calls.append("(void)s;")
        declared = [f"float {', '.join(buffers)};"] if buffers else []
        self.step = [*declared, *calls]
        if not self.head:
            self.step.append(f"elman_copy(out, {values}, {size});")

    def _take(self, arrays: Sequence[Array]) -> str:
        """Where these weights stand."""
        where = f"{self._at} + {self._count}"
        self.weights += [np.ascontiguousarray(a).ravel() for a in arrays]
        self._count += sum(a.size for a in arrays)
        return where

    def _recurrent(
        self, layer: Recurrent, j: int, number: int, x: str, initial: Sequence[Array]
    ) -> str:
        """One layer of a stack."""
        spec = layer.spec
        cell, H, P = spec.cell, spec.hidden_size, spec.proj_size
        D = spec.input_size if j == 0 else spec.output_size
        named: dict[str, Any] = layer.state_dict()
        given = Weights(*(named.get(n) for n in weight_names(j, 0)))
        where = self._take(list(_rows(cell, H, given)))
        fields = [f"{state}{number}" for state in cell.states]
        for field, a in zip(fields, initial, strict=True):
            self._field(field, a)
        rows = len(cell.gates) * H
        self._work = max(self._work, 2 * rows)
        sizes = f"{D}, {H}, {P}" if cell.kind == "LSTM" else f"{D}, {H}"
        states = ", ".join(f"s->{field}" for field in fields)
        return f"elman_{cell.name}({where}, {x}, {sizes}, {states}, work);"

    def _field(self, name: str, initial: Array) -> None:
        """A state, and what it begins with."""
        self.state.append(f"float {name}[{initial.size}];")
        if initial.any():
            self.reset.append(f"elman_copy(s->{name}, {self._take([initial])}, {initial.size});")
        else:
            self.reset.append(f"elman_clear(s->{name}, {initial.size});")

    def _conv1d(self, layer: Conv1d, k: int, x: str, to: str) -> str:
        w = self._take([layer.matrix(), layer.bias])
        self._field(f"ring{k}", np.zeros((layer.history + 1) * layer.input_size, np.float32))
        self.state.append(f"int at{k};")
        self.reset.append(f"s->at{k} = 0;")
        self._work = max(self._work, layer.kernel_size * layer.input_size)
        sizes = f"{layer.input_size}, {layer.kernel_size}, {layer.dilation}, {layer.output_size}"
        return f"elman_conv1d({w}, {x}, {sizes}, s->ring{k}, &s->at{k}, work, {to});"


def _rows(cell: Cell, H: int, w: Weights) -> Iterator[Array]:
    """A recurrent layer's weights in the order of ``layers.h``."""
    rows = len(w.w_ih)
    zeros = np.zeros(rows, np.float32)
    b_ih, b_hh = (zeros, zeros) if w.b_ih is None else (w.b_ih, w.b_hh)
    sums, apart = b_ih + b_hh, zeros
    if cell.name == "gru":
        new = np.arange(rows) >= 2 * H
        sums, apart = np.where(new, b_ih, sums), np.where(new, b_hh, zeros)
    together = [np.arange(rows)]
    if cell.gated:
        together = [np.arange(2 * H), np.arange(2 * H, 3 * H)]
    elif cell.kind == "LSTM":  # i, f, o, g, so that what is a sigmoid's lies together
        i_f, g, o = np.split(np.arange(rows), [2 * H, 3 * H])
        together = [np.concatenate([i_f, o, g])]
    for order in together:
        yield w.w_ih[order].T
        yield sums[order]
        yield w.w_hh[order].T
        if cell.name == "gru":
            yield apart[order]
    if w.w_hr is not None:
        yield w.w_hr.T


def _finite(arrays: Sequence[Array]) -> Array:
    numbers = np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError("header: weights must be finite, and some are not")
    return numbers


def _constants(name: str, numbers: Array) -> str:
    """An array of them, each exact with nine digits."""
    text = ", ".join(
        f"{x:.9g}f" if "." in f"{x:.9g}" or "e" in f"{x:.9g}" else f"{x:.9g}.0f" for x in numbers
    )
    lines = indent(fill(text, 98), "  ")
    return f"static const float ELMAN_ALIGNED {name}_weights[] = {{\n{lines}}};\n\n"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)
