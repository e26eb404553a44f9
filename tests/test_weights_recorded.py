"""Recorded cases of Keras, Flax, Equinox and ONNX Runtime, in Elman's layers.

What a framework makes of masks, lengths and directions is put here as a plan: the steps that a
direction takes, and which of its states come out where. Weights and gradients go through `convert`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from reference import assert_close, parts, whole

import elman
from elman.spec import CELLS
from elman.weights import ConversionError, convert

FIXTURES = Path(__file__).parent / "fixtures"
SOURCES = ("keras", "flax", "equinox", "onnx")

#: Cases of functions that no door has, by options of a class that weights do not tell.
OTHER_FUNCTIONS = {
    "gru_after_acts": "activations that are not σ and tanh",
    "gru_before_acts": "activations that are not σ and tanh",
    "linen_grucell_act_relu": "relu in place of tanh",
    "nnx_grucell_act_relu": "relu in place of tanh",
    "linen_simplecell_residual": "a residual connection",
    "nnx_simplecell_residual": "a residual connection",
    "gru_lbr1_forward_clip": "clip",
    "gru_lbr1_reverse_clip": "clip",
    "gru_lbr1_bidirectional_clip": "clip",
    "gru_lbr1_forward_relu": "HardSigmoid and relu in place of σ and tanh",
    "gru_lbr1_reverse_relu": "HardSigmoid and relu in place of σ and tanh",
    "gru_lbr1_bidirectional_relu": "HardSigmoid and relu in place of σ and tanh",
    "gru_lbr0_forward_clip": "clip",
    "gru_lbr0_reverse_clip": "clip",
    "gru_lbr0_bidirectional_clip": "clip",
    "gru_lbr0_forward_relu": "HardSigmoid and relu in place of σ and tanh",
    "gru_lbr0_reverse_relu": "HardSigmoid and relu in place of σ and tanh",
    "gru_lbr0_bidirectional_relu": "HardSigmoid and relu in place of σ and tanh",
}
#: Reset before the recurrent product, which these tensors alone do not tell: an attribute does.
UNTOLD = {"gru_before_nobias", "grucell_before_nobias"}


class Case:
    """A recorded case: its arrays by name, and how the framework was called."""

    def __init__(self, path):
        self.name = path.stem
        with np.load(path) as file:
            self.arrays = dict(file)
        self.meta = json.loads(str(self.arrays.pop("meta")))
        self.framework = self.meta["framework"]
        if self.framework == "flax":
            self.framework = f"flax-{self.meta['api']}"
        self.arguments = self.meta["args"]
        self.weights, self.gradients = self._named("weight."), self._named("grad.weight.")

    def __getitem__(self, name):
        return self.arrays.get(name)

    def _named(self, prefix):
        arrays = self.arrays.items()
        return {_own_name(k[len(prefix) :]): a for k, a in arrays if k.startswith(prefix)}

    @property
    def before(self):
        if self.framework == "onnx":
            return not self.arguments.get("linear_before_reset", 1)
        return not self.arguments.get("reset_after", True)

    @property
    def told(self):
        """What `convert` has to be told of the tensors."""
        untold = self.framework == "onnx" or self.name in UNTOLD
        return {"reset_after": False} if self.before and untold else {}

    @property
    def cell(self):
        """The row of the table of cells."""
        if self.before:
            return CELLS["gru_reset_before"]
        for kind in ("gru", "lstm"):
            if kind in self.name:
                return CELLS[kind]
        names = [self.arguments.get("activation"), self.arguments.get("activation_fn")]
        relu = "relu" in names or "Relu" in self.arguments.get("activations", [])
        return CELLS["rnn_relu" if relu else "rnn_tanh"]

    @property
    def directions(self):
        if self.framework == "onnx":
            return 2 if self.arguments["direction"] == "bidirectional" else 1
        return 2 if self.meta.get("bidirectional") or self.meta.get("kind") == "bi" else 1


def _own_name(name):
    """As Keras itself names a SimpleRNN that nobody named."""
    return name.replace("ward_simplernn/", "ward_simple_rnn/")


def cases(keep):
    paths = sorted(p for source in SOURCES for p in (FIXTURES / source).glob("*.npz"))
    kept = [path for path in paths if keep(Case(path))]
    assert kept
    return [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in kept]


@dataclass
class Plan:
    """One direction of a case, as Elman's layer takes it. Arrays are (L, N), or (N,).

    order : the step of the input that row n reads at its p-th step.
    lengths : how many steps it takes.
    output : after how many of them comes the state that is its output at each place; -1: zeros.
    final : after how many comes its final state.
    """

    order: np.ndarray
    lengths: np.ndarray
    output: np.ndarray
    final: np.ndarray


def keras_plan(case, steps, rows, backward):
    mask = np.ones((steps, rows), bool) if case["mask"] is None else case["mask"].T
    backward = backward != case.arguments.get("go_backwards", False)
    places = np.arange(steps)[:: -1 if backward else 1]
    order = np.zeros((steps, rows), int)
    for n in range(rows):
        taken = [p for p in places if mask[p, n]]
        order[: len(taken), n] = taken
    output = np.cumsum(mask[places], axis=0)
    zeros = case.directions == 2 or case.arguments.get("zero_output_for_mask", False)
    if zeros and case.arguments.get("return_sequences", True):
        output[~mask[places]] = -1
    if case.directions == 2 and backward:
        output = output[::-1]
    return Plan(order, mask.sum(0), output, mask.sum(0))


def flax_plan(case, steps, rows, backward):
    """Every step is computed, whatever the lengths; reversed, padding comes last."""
    lengths = np.full(rows, steps) if case["lengths"] is None else case["lengths"]
    order = np.repeat(np.arange(steps)[:, None], rows, 1)
    output = order + 1
    if backward or case.meta["rnn"].get("reverse"):
        order = (order[::-1] + lengths) % steps
        if backward or case.meta["rnn"].get("keep_order"):
            output = np.take_along_axis(output, order, 0)
    return Plan(order, np.full(rows, steps), output, lengths)


def onnx_plan(case, steps, rows, backward):
    lengths = np.full(rows, steps) if case["lengths"] is None else case["lengths"]
    time = np.repeat(np.arange(steps)[:, None], rows, 1)
    past = time >= lengths
    order, output = time, time + 1
    if backward or case.arguments["direction"] == "reverse":
        order = np.where(past, time, lengths - 1 - time)
        output = lengths - time
    return Plan(order, lengths, np.where(past, -1, output), lengths)


def equinox_plan(case, steps, rows, backward):
    time = np.repeat(np.arange(steps)[:, None], rows, 1)
    return Plan(time, np.full(rows, steps), time + 1, np.full(rows, steps))


PLANS = {
    "keras": keras_plan,
    "flax-linen": flax_plan,
    "flax-nnx": flax_plan,
    "equinox": equinox_plan,
    "onnx": onnx_plan,
}


class Direction:
    """One direction run by Elman's layer, and the way back.

    output is (L, N, H), final a list of the final h (N, H), and of an LSTM c, whose cases all end
    with a row's last step.
    """

    def __init__(self, layer, plan, x, first):
        self.plan, self.rows, self.x = plan, np.arange(x.shape[1]), x
        taken = np.take_along_axis(x, plan.order[:, :, None], 0)
        state = whole([a[None] for a in first])
        states, last, self._vjp = layer.vjp(taken, state, lengths=plan.lengths)
        self.states = np.concatenate([first[:1], states])
        self.output = self.states[plan.output, self.rows] * (plan.output >= 0)[..., None]
        self.c = [a[0] for a in parts(last)[1:]]
        assert not self.c or (plan.final == plan.lengths).all()
        self.final = [self.states[plan.final, self.rows], *self.c]

    def vjp(self, d_output, d_final):
        """The gradients of x, a list of those of the first state, and the weights' by name."""
        d_states = np.zeros_like(self.states)
        places = self.plan.output
        np.add.at(d_states, (places, self.rows), d_output * (places >= 0)[..., None])
        np.add.at(d_states, (self.plan.final, self.rows), d_final[0])
        d_c = [d[None] for d in d_final[1:]]
        gradients = self._vjp(d_states[1:], (np.zeros_like(d_c[0]), *d_c) if d_c else None)
        d_x = np.zeros_like(self.x)
        places = (self.plan.order, self.rows)
        taken = np.arange(len(self.x))[:, None] < self.plan.lengths
        np.add.at(d_x, places, gradients.pop("x") * taken[..., None])
        d_first = [gradients.pop(f"{name}_0")[0] for name in ("h", "c")[: 1 + len(self.c)]]
        d_first[0] = d_first[0] + d_states[0]
        return d_x, d_first, gradients


def is_cell(case):
    return case["input"].ndim == case["output"].ndim and case["h_n"] is None


def time_major(case, a):
    """(L, N, features) of what the case has for x or output."""
    if a.ndim == 3 and case.framework != "onnx" and not case.meta.get("rnn", {}).get("time_major"):
        return a.swapaxes(0, 1)
    if a.ndim == 3:
        return a
    if a.ndim == 1:
        return a[None, None]
    return a[None] if is_cell(case) else a[:, None]


def states(case, names, rows, hidden):
    """What the case has of h, and of an LSTM's c, by name, each (directions, N, H)."""
    zeros = np.zeros((case.directions, rows, hidden), case.meta["dtype"])
    given = [case[name] for name in names[: len(case.cell.states)]]
    return [zeros if a is None else a.reshape(zeros.shape) for a in given]


class Run:
    """A case run by Elman: its weights read as PyTorch's, each direction as its plan says."""

    def __init__(self, case):
        self.case = case
        self.weights = convert(case.weights, source=case.framework, target="elman", **case.told)
        cell = "weight_ih" in self.weights
        self.hidden = next(w for name, w in self.weights.items() if "hh" in name).shape[1]
        self.x = time_major(case, case["input"])
        steps, rows, size = self.x.shape
        first = states(case, ("h_0", "c_0"), rows, self.hidden)
        self.suffixes = [""] if cell else ["_l0", "_l0_reverse"][: case.directions]
        self.directions = []
        for d, suffix in enumerate(self.suffixes):
            own = {f"{k}_l0": self.weights[f"{k}{suffix}"] for k in self.kinds(suffix)}
            options = {"bias": len(own) == 4, "dtype": case.meta["dtype"]}
            if case.cell.kind == "RNN":
                options["nonlinearity"] = case.cell.name.removeprefix("rnn_")
            if case.before:
                options["reset_after"] = False
            layer = getattr(elman, case.cell.kind)(size, self.hidden, **options)
            layer.load_state_dict(own)
            plan = PLANS[case.framework](case, steps, rows, d == 1)
            self.directions.append(Direction(layer, plan, self.x, [a[d] for a in first]))

    def final(self):
        """Each state's final values, (directions, N, H)."""
        return [np.stack(a) for a in zip(*(d.final for d in self.directions), strict=True)]

    def kinds(self, suffix):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [kind for kind in kinds if f"{kind}{suffix}" in self.weights]

    def output(self):
        """As the framework puts the directions together."""
        outputs = [direction.output for direction in self.directions]
        if self.case.framework == "onnx":
            return np.stack(outputs, 1)
        mode = (self.case.meta.get("bidirectional") or {}).get("merge_mode", "concat")
        if len(outputs) == 1 or mode == "concat":
            return np.concatenate(outputs, -1)
        return {"ave": sum(outputs) / 2, "sum": sum(outputs), "mul": np.prod(outputs, 0)}[mode]

    def d_outputs(self, d_output):
        """What each direction's output gets of the gradient of `output`."""
        mode = (self.case.meta.get("bidirectional") or {}).get("merge_mode", "concat")
        if len(self.directions) == 1 or mode == "concat":
            return np.split(d_output, len(self.directions), -1)
        f, b = (direction.output for direction in self.directions)
        shares = {"ave": (0.5, 0.5), "sum": (1, 1), "mul": (b, f)}[mode]
        return [(d_output * share).astype(f.dtype) for share in shares]


SUPPORTED = cases(lambda c: c.name not in OTHER_FUNCTIONS)
REFUSED = cases(lambda c: c.before and c.name not in OTHER_FUNCTIONS)


def from_elman(case, weights):
    """In the case's framework."""
    told = {"reset_after": False} if case.before else {}
    return convert(weights, source="elman", target=case.framework, **told)


@pytest.mark.parametrize("path", SUPPORTED)
def test_forward(path):
    case = Case(path)
    run, want = Run(case), case["output"]
    dtype = case.meta["dtype"]
    if case["output_backward"] is not None:
        for direction, name in zip(run.directions, ("output", "output_backward"), strict=True):
            assert_close(direction.output, time_major(case, case[name]), dtype, name)
    elif case.arguments.get("return_sequences", True):
        got = run.output()
        if case.framework != "onnx":
            want = time_major(case, want)
        assert_close(got, want, dtype, "output")
    else:
        assert_close(np.concatenate(run.final()[0], -1), want, dtype, "last")
    wanted = states(case, ("h_n", "c_n"), run.x.shape[1], run.hidden)
    for name, got, want in zip(("h_n", "c_n"), run.final(), wanted, strict=False):
        if case[name] is not None:
            assert_close(got, want, dtype, name)


def d_directions(case, run):
    """Each direction's gradients of output and final state."""
    rows = run.x.shape[1]
    given = states(case, ("Gh", "Gc"), rows, run.hidden)
    finals = [[a[d] for a in given] for d in range(len(run.directions))]
    if case["output_backward"] is not None:
        outputs = [time_major(case, case[name]) for name in ("G", "G_backward")]
    elif case.arguments.get("return_sequences", True):
        outputs = run.d_outputs(time_major(case, case["G"]))
    else:
        outputs = [np.zeros_like(direction.output) for direction in run.directions]
        last = np.split(case["G"], len(run.directions), -1)
        finals = [[d[0] + share, *d[1:]] for d, share in zip(finals, last, strict=True)]
    return zip(outputs, finals, strict=True)


def places(case):
    """1 where a canonical weight is one of the framework's, 0 where it is a zero that it lacks."""
    ones = {name: np.ones_like(a) for name, a in case.weights.items()}
    return convert(ones, source=case.framework, target="elman", **case.told)


@pytest.mark.parametrize("path", [p for p in SUPPORTED if "grad.input" in Case(p.values[0]).arrays])
def test_gradients(path):
    """The weights' gradients, converted back: moving values is its own transpose."""
    case = Case(path)
    run, dtype = Run(case), case.meta["dtype"]
    rows = run.x.shape[1]
    d_x, d_first, d_weights = 0, [], {}
    for direction, d, suffix in zip(
        run.directions, d_directions(case, run), run.suffixes, strict=True
    ):
        one_x, one_first, gradients = direction.vjp(*d)
        d_x, d_first = d_x + one_x, [*d_first, one_first]
        d_weights |= {k.replace("_l0", suffix): g for k, g in gradients.items()}
    assert_close(d_x, time_major(case, case["grad.input"]), dtype, "x")
    wanted = states(case, ("grad.h_0", "grad.c_0"), rows, run.hidden)
    for name, got, want in zip(("h_0", "c_0"), zip(*d_first, strict=True), wanted, strict=False):
        if case[f"grad.{name}"] is not None:
            assert_close(np.stack(got), want, dtype, name)
    own = {name: d_weights[name] * place for name, place in places(case).items()}
    back = from_elman(case, own)
    assert back.keys() == case.gradients.keys()
    for name, want in case.gradients.items():
        assert_close(back[name], want, dtype, name)


@pytest.mark.parametrize("path", SUPPORTED)
def test_weights_come_back_as_they_were(path):
    case = Case(path)
    there = convert(case.weights, source=case.framework, target="elman", **case.told)
    back = from_elman(case, there)
    assert not there.folded
    assert not back.folded
    assert back.keys() == case.weights.keys()
    for name, want in case.weights.items():
        assert back[name].dtype == want.dtype
        np.testing.assert_array_equal(back[name], want, err_msg=name)


@pytest.mark.parametrize("path", REFUSED)
def test_reset_before_is_refused(path):
    case = Case(path)
    for target in ("torch", "mlx"):
        with pytest.raises(ConversionError, match="and this one before the recurrent product"):
            convert(case.weights, source=case.framework, target=target, **case.told)


@pytest.mark.parametrize("name", sorted(UNTOLD))
def test_what_the_tensors_do_not_tell_is_said(name):
    case = Case(FIXTURES / "keras" / f"{name}.npz")
    converted = convert(case.weights, source="keras", target="torch")
    assert any("reset_after=True" in note for note in converted.notes)


def test_every_case_is_run_or_listed_with_a_reason():
    paths = {path for source in SOURCES for path in (FIXTURES / source).glob("*.npz")}
    named = {param.values[0] for param in SUPPORTED}
    assert {path.stem for path in paths - named} == OTHER_FUNCTIONS.keys()
