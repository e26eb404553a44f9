"""Every recorded case of OneFlow's layers, through the NumPy package. OneFlow is not needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded import Case
from reference import assert_close, each, named, parts

import elman

FIXTURES = Path(__file__).parent / "fixtures" / "oneflow"
CASES = sorted(path.stem for path in FIXTURES.glob("*.npz"))
LAYERS = [name for name in CASES if "cell" not in name]
CELLS = [name for name in CASES if "cell" in name]


def load(name):
    case = Case.load(FIXTURES / name)
    return replace(case, name=name, kind=case.kind.removeprefix("oneflow.nn."))


def build(case, kind):
    return getattr(elman, kind)(**case.arguments, dtype=case.dtype)


def pad(a, case):
    """Put back the steps, all padding, that packing cut off past the longest length."""
    time = 1 if case.batch_first else 0
    missing = [(0, 0)] * a.ndim
    missing[time] = (0, case.x.shape[time] - a.shape[time])
    return np.pad(a, missing)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    case = load(name)
    layer = build(case, case.kind).train(case.training)
    layer.load_state_dict(case.weights)
    output, final, vjp = layer.vjp(case.x, case.state, lengths=case.lengths)
    assert_close(output, pad(case.output, case), case.dtype, "output")
    assert_close(final, case.final, case.dtype, "final state")
    gradients = vjp(pad(case.d_output, case), case.d_final)
    assert gradients.keys() == case.gradients.keys() | named(case.final, "0").keys()
    for key, want in case.gradients.items():
        assert_close(gradients[key], want, case.dtype, key)


@pytest.mark.parametrize("name", CELLS)
def test_cell(name):
    case = load(name)
    cell = build(case, case.kind)
    cell.load_state_dict(case.weights)
    state, outputs = case.state, []
    for x in case.x if case.loop else [case.x]:
        state = cell(x, state)
        outputs.append(parts(state)[0])
    assert_close(np.stack(outputs) if case.loop else outputs[0], case.output, case.dtype, "output")
    assert_close(state, case.final, case.dtype, "final state")


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_cell(name):
    """A cell has no vjp: the layer that holds its weights has."""
    case = load(name)
    layer = build(case, case.kind.removesuffix("Cell"))
    layer.load_state_dict({f"{key}_l0": w for key, w in case.weights.items()})
    state, d_final = (each(lambda a: a[None], s) for s in (case.state, case.d_final))
    _, _, vjp = layer.vjp(case.x if case.loop else case.x[None], state)
    # One step's output is its state, which has the gradient.
    gradients = vjp(case.d_output if case.loop else None, d_final)
    for key, want in case.gradients.items():
        got = gradients[key if key in gradients else f"{key}_l0"]
        assert_close(got.reshape(want.shape), want, case.dtype, key)
