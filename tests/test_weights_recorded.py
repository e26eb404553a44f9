"""Recorded cases of Keras, Flax, Equinox and ONNX Runtime, in Elman's layers.

What a framework makes of masks, lengths and directions is put here as a plan: the steps that a
direction takes, and which of its states come out where. Weights and gradients go through `convert`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from reference import assert_close

import elman
from elman.weights import ConversionError, convert

FIXTURES = Path(__file__).parent / "fixtures"
SOURCES = ("keras", "flax", "equinox", "onnx")

#: Cases of functions that no door has, by options of a class that weights do not tell.
OTHER_FUNCTIONS = {
    "gru_after_acts": "activations that are not σ and tanh",
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
    def relu(self):
        names = [self.arguments.get("activation"), self.arguments.get("activation_fn")]
        return "relu" in names or "Relu" in self.arguments.get("activations", [])

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
    """One direction run by Elman's layer: `output` (L, N, H), `final` (N, H), and the way back."""

    def __init__(self, layer, plan, x, h_0):
        self.plan, self.rows, self.x = plan, np.arange(x.shape[1]), x
        taken = np.take_along_axis(x, plan.order[:, :, None], 0)
        states, _, self._vjp = layer.vjp(taken, h_0[None], lengths=plan.lengths)
        self.states = np.concatenate([h_0[None], states])
        self.output = self.states[plan.output, self.rows] * (plan.output >= 0)[..., None]
        self.final = self.states[plan.final, self.rows]

    def vjp(self, d_output, d_final):
        """The gradients of x, h_0 and the weights."""
        d_states = np.zeros_like(self.states)
        places = self.plan.output
        np.add.at(d_states, (places, self.rows), d_output * (places >= 0)[..., None])
        if d_final is not None:
            np.add.at(d_states, (self.plan.final, self.rows), d_final)
        gradients = self._vjp(d_states[1:], None)
        d_x = np.zeros_like(self.x)
        places = (self.plan.order, self.rows)
        taken = np.arange(len(self.x))[:, None] < self.plan.lengths
        np.add.at(d_x, places, gradients.pop("x") * taken[..., None])
        return d_x, gradients.pop("h_0")[0] + d_states[0], gradients


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


def states(case, a, rows, hidden):
    """(directions, N, H) of what the case has for h_0 or h_n."""
    if a is None:
        return np.zeros((case.directions, rows, hidden), case.meta["dtype"])
    return a.reshape(case.directions, rows, hidden)


class Run:
    """A case run by Elman: its weights read as PyTorch's, each direction as its plan says."""

    def __init__(self, case):
        self.case = case
        self.weights = convert(case.weights, source=case.framework, target="torch")
        cell = "weight_ih" in self.weights
        gru = "gru" in case.name
        self.hidden = next(w for name, w in self.weights.items() if "hh" in name).shape[1]
        self.x = time_major(case, case["input"])
        steps, rows, size = self.x.shape
        h_0 = states(case, case["h_0"], rows, self.hidden)
        self.suffixes = [""] if cell else ["_l0", "_l0_reverse"][: case.directions]
        self.directions = []
        for d, suffix in enumerate(self.suffixes):
            own = {f"{k}_l0": self.weights[f"{k}{suffix}"] for k in self.kinds(suffix)}
            options = {"bias": len(own) == 4, "dtype": case.meta["dtype"]}
            if not gru:
                options["nonlinearity"] = "relu" if case.relu else "tanh"
            layer = (elman.GRU if gru else elman.RNN)(size, self.hidden, **options)
            layer.load_state_dict(own)
            plan = PLANS[case.framework](case, steps, rows, d == 1)
            self.directions.append(Direction(layer, plan, self.x, h_0[d]))

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


SUPPORTED = cases(lambda c: not c.before and c.name not in OTHER_FUNCTIONS)
REFUSED = cases(lambda c: c.before and c.framework != "onnx" and c.name not in UNTOLD)


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
        assert_close(np.concatenate([d.final for d in run.directions], -1), want, dtype, "last")
    if case["h_n"] is not None:
        rows = run.x.shape[1]
        final = np.stack([direction.final for direction in run.directions])
        assert_close(final, states(case, case["h_n"], rows, run.hidden), dtype, "h_n")


def d_directions(case, run):
    """Each direction's gradients of output and final state."""
    rows = run.x.shape[1]
    finals = [None] * len(run.directions)
    if case["Gh"] is not None:
        finals = list(states(case, case["Gh"], rows, run.hidden))
    if case["output_backward"] is not None:
        outputs = [time_major(case, case[name]) for name in ("G", "G_backward")]
    elif case.arguments.get("return_sequences", True):
        outputs = run.d_outputs(time_major(case, case["G"]))
    else:
        outputs = [np.zeros_like(direction.output) for direction in run.directions]
        last = np.split(case["G"], len(run.directions), -1)
        finals = [d + share for d, share in zip(finals, last, strict=True)]
    return zip(outputs, finals, strict=True)


def places(case):
    """1 where a canonical weight is one of the framework's, 0 where it is a zero that it lacks."""
    ones = {name: np.ones_like(a) for name, a in case.weights.items()}
    return convert(ones, source=case.framework, target="torch")


@pytest.mark.parametrize("path", [p for p in SUPPORTED if "grad.input" in Case(p.values[0]).arrays])
def test_gradients(path):
    """The weights' gradients, converted back: moving values is its own transpose."""
    case = Case(path)
    run, dtype = Run(case), case.meta["dtype"]
    rows = run.x.shape[1]
    d_x, d_h_0, d_weights = 0, [], {}
    for direction, d, suffix in zip(
        run.directions, d_directions(case, run), run.suffixes, strict=True
    ):
        one_x, one_h_0, gradients = direction.vjp(*d)
        d_x, d_h_0 = d_x + one_x, [*d_h_0, one_h_0]
        d_weights |= {k.replace("_l0", suffix): g for k, g in gradients.items()}
    assert_close(d_x, time_major(case, case["grad.input"]), dtype, "x")
    if case["grad.h_0"] is not None:
        want = states(case, case["grad.h_0"], rows, run.hidden)
        assert_close(np.stack(d_h_0), want, dtype, "h_0")
    own = {name: d_weights[name] * place for name, place in places(case).items()}
    back = convert(own, source="torch", target=case.framework)
    assert back.keys() == case.gradients.keys()
    for name, want in case.gradients.items():
        assert_close(back[name], want, dtype, name)


@pytest.mark.parametrize("path", SUPPORTED)
def test_weights_come_back_as_they_were(path):
    case = Case(path)
    there = convert(case.weights, source=case.framework, target="torch")
    back = convert(there, source="torch", target=case.framework)
    assert not there.folded
    assert not back.folded
    assert back.keys() == case.weights.keys()
    for name, want in case.weights.items():
        assert back[name].dtype == want.dtype
        np.testing.assert_array_equal(back[name], want, err_msg=name)


@pytest.mark.parametrize("path", REFUSED)
def test_reset_before_is_refused(path):
    case = Case(path)
    with pytest.raises(ConversionError, match="reset gate before the recurrent product"):
        convert(case.weights, source=case.framework, target="torch")


@pytest.mark.parametrize("name", sorted(UNTOLD))
def test_what_the_tensors_do_not_tell_is_said(name):
    case = Case(FIXTURES / "keras" / f"{name}.npz")
    converted = convert(case.weights, source="keras", target="torch")
    assert any("reset_after=True" in note for note in converted.notes)


def test_every_case_is_run_refused_or_listed_with_a_reason():
    paths = {path for source in SOURCES for path in (FIXTURES / source).glob("*.npz")}
    named = {param.values[0] for param in SUPPORTED + REFUSED}
    rest = {path.stem for path in paths - named}
    before = {path.stem for path in (FIXTURES / "onnx").glob("gru_lbr0_*.npz")}  # test_onnx.py
    assert rest == OTHER_FUNCTIONS.keys() | UNTOLD | before
