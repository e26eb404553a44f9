"""Every recorded case of OneFlow's layers, through the NumPy door. OneFlow is not needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded import Case
from reference import assert_close

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
    output, h_n, vjp = layer.vjp(case.x, case.h_0, lengths=case.lengths)
    assert_close(output, pad(case.output, case), case.dtype, "output")
    assert_close(h_n, case.h_n, case.dtype, "h_n")
    gradients = vjp(pad(case.d_output, case), case.d_h_n)
    assert gradients.keys() == case.gradients.keys() | {"h_0"}
    for key, want in case.gradients.items():
        assert_close(gradients[key], want, case.dtype, key)


@pytest.mark.parametrize("name", CELLS)
def test_cell(name):
    case = load(name)
    cell = build(case, case.kind)
    cell.load_state_dict(case.weights)
    h, states = case.h_0, []
    for x in case.x if case.loop else [case.x]:
        h = cell(x, h)
        states.append(h)
    assert_close(np.stack(states) if case.loop else h, case.output, case.dtype, "output")


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_cell(name):
    """A cell has no vjp: the layer that holds its weights has."""
    case = load(name)
    layer = build(case, case.kind.removesuffix("Cell"))
    layer.load_state_dict({f"{key}_l0": w for key, w in case.weights.items()})
    x, d_output = (a if case.loop else a[None] for a in (case.x, case.d_output))
    d_h_n = None if case.d_h_n is None else case.d_h_n[None]
    _, _, vjp = layer.vjp(x, case.h_0[None])
    gradients = vjp(d_output, d_h_n)
    for key, want in case.gradients.items():
        got = gradients[key if key in gradients else f"{key}_l0"]
        assert_close(got.reshape(want.shape), want, case.dtype, key)
