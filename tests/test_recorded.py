"""Every recorded case of PyTorch's layers, through the NumPy door."""

import numpy as np
import pytest
from recorded import Case, cases
from reference import assert_close

import elman


def build(case, kind):
    layer = getattr(elman, kind)(**case.arguments, dtype=case.dtype)
    layer.load_state_dict(case.weights)
    return layer


def pad(a, like, axis):
    """Put back the steps, all padding, that PyTorch cut off past the longest length."""
    missing = [(0, 0)] * a.ndim
    missing[axis] = (0, like.shape[axis] - a.shape[axis])
    return np.pad(a, missing)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" not in n])
def test_layer(name):
    case = Case.load(name)
    layer = build(case, case.kind).train(case.training)
    time = 1 if case.batch_first else 0
    output, h_n = layer(case.x, case.h_0, lengths=case.lengths)
    assert_close(output, pad(case.output, case.x, time), case.dtype, "output")
    assert_close(h_n, case.h_n, case.dtype, "h_n")

    output, h_n, vjp = layer.vjp(case.x, case.h_0, lengths=case.lengths)
    gradients = vjp(pad(case.d_output, case.x, time), case.d_h_n)
    assert_close(output, pad(case.output, case.x, time), case.dtype, "output")
    assert_close(h_n, case.h_n, case.dtype, "h_n")
    assert gradients.keys() == {"x", "h_0", *case.weights}
    for key, want in case.gradients.items():
        assert_close(gradients[key], want, case.dtype, key)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" in n])
def test_cell(name):
    case = Case.load(name)
    cell = build(case, case.kind)
    if case.loop:
        h, states = case.h_0, []
        for x in case.x:
            h = cell(x, h)
            states.append(h)
        assert_close(np.stack(states), case.output, case.dtype, "output")
        assert_close(h, case.h_n, case.dtype, "h_n")
    else:
        assert_close(cell(case.x, case.h_0), case.output, case.dtype, "h")


@pytest.mark.parametrize("name", [n for n in cases() if "cell" in n])
def test_gradients_of_cell(name):
    """A cell has no vjp: the layer that holds its weights has."""
    case = Case.load(name)
    layer = getattr(elman, case.kind.removesuffix("Cell"))(**case.arguments, dtype=case.dtype)
    layer.load_state_dict({f"{key}_l0": w for key, w in case.weights.items()})

    def steps(a):
        return a if case.loop else a[None]

    h_0 = None if case.h_0 is None else case.h_0[None]
    d_h_n = None if case.d_h_n is None else case.d_h_n[None]
    output, _, vjp = layer.vjp(steps(case.x), h_0)
    assert_close(output, steps(case.output), case.dtype, "output")
    gradients = vjp(steps(case.d_output), d_h_n)
    for key, want in case.gradients.items():
        if key == "x":
            assert_close(gradients["x"], steps(want), case.dtype, key)
        elif key == "h_0":
            assert_close(gradients["h_0"], want[None], case.dtype, key)
        else:
            assert_close(gradients[f"{key}_l0"], want, case.dtype, key)
