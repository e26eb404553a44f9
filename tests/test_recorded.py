"""Every recorded case of PyTorch's layers, through the NumPy package."""

import numpy as np
import pytest
from recorded import Case, cases
from reference import assert_close, each, named, parts

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
    output, final = layer(case.x, case.state, lengths=case.lengths)
    assert_close(output, pad(case.output, case.x, time), case.dtype, "output")
    assert_close(final, case.final, case.dtype, "final state")

    output, final, vjp = layer.vjp(case.x, case.state, lengths=case.lengths)
    gradients = vjp(pad(case.d_output, case.x, time), case.d_final)
    assert_close(output, pad(case.output, case.x, time), case.dtype, "output")
    assert_close(final, case.final, case.dtype, "final state")
    assert gradients.keys() == {"x", *named(case.final, "0"), *case.weights}
    for key, want in case.gradients.items():
        assert_close(gradients[key], want, case.dtype, key)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" in n])
def test_cell(name):
    case = Case.load(name)
    cell = build(case, case.kind)
    if case.loop:
        state, outputs = case.state, []
        for x in case.x:
            state = cell(x, state)
            outputs.append(parts(state)[0])
        assert_close(np.stack(outputs), case.output, case.dtype, "output")
        assert_close(state, case.final, case.dtype, "final state")
    else:
        assert_close(cell(case.x, case.state), case.final, case.dtype, "state")


@pytest.mark.parametrize("name", [n for n in cases() if "cell" in n])
def test_gradients_of_cell(name):
    """A cell has no vjp: the layer that holds its weights has."""
    case = Case.load(name)
    layer = getattr(elman, case.kind.removesuffix("Cell"))(**case.arguments, dtype=case.dtype)
    layer.load_state_dict({f"{key}_l0": w for key, w in case.weights.items()})

    def steps(a):
        return a if case.loop else a[None]

    def layers(state):
        return each(lambda a: a[None], state)

    output, _, vjp = layer.vjp(steps(case.x), None if case.state is None else layers(case.state))
    assert_close(output, steps(case.output), case.dtype, "output")
    # One step's output is its state, which has the gradient.
    gradients = vjp(case.d_output if case.loop else None, layers(case.d_final))
    for key, want in case.gradients.items():
        if key == "x":
            assert_close(gradients["x"], steps(want), case.dtype, key)
        elif key in ("h_0", "c_0"):
            assert_close(gradients[key], want[None], case.dtype, key)
        else:
            assert_close(gradients[f"{key}_l0"], want, case.dtype, key)
