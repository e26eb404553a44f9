"""Every recorded case of PyTorch's layers and cells, through the PyTorch package."""

import pytest
import torch
from recorded import Case, cases
from reference import assert_close, parts, whole
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman.torch


def build(case):
    module = getattr(elman.torch, case.kind)(**case.arguments, dtype=getattr(torch, case.dtype))
    module.load_state_dict({k: torch.from_numpy(w) for k, w in case.weights.items()})
    return module.train(case.training)


def tensor(array):
    return torch.tensor(array, requires_grad=array.dtype.kind == "f")


def state_of(case):
    return None if case.state is None else whole([tensor(a) for a in parts(case.state)])


def check(case, module, x, hx, output, state):
    """`output` is None for one step of a cell."""
    results = [(output, case.output, case.d_output)] if output is not None else []
    results += zip(parts(state), parts(case.final), parts(case.d_final), strict=True)
    for result, expected, _ in results:
        assert_close(result.detach(), expected, case.dtype)
    sum((t * torch.from_numpy(d)).sum() for t, _, d in results).backward()
    leaves = {"x": x, **dict(module.named_parameters())}
    if hx is not None:
        leaves |= zip(("h_0", "c_0"), parts(hx), strict=False)
    assert case.gradients.keys() == leaves.keys()
    for name, expected in case.gradients.items():
        assert_close(leaves[name].grad, expected, case.dtype, name)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" not in n])
def test_layer(name):
    case = Case.load(name)
    layer, x, hx = build(case), tensor(case.x), state_of(case)
    with elman.torch.require("kernel"):
        if case.lengths is None:
            output, state = layer(x, hx)
        else:
            given = (torch.from_numpy(case.lengths), case.batch_first, case.enforce_sorted)
            output, state = layer(pack_padded_sequence(x, *given), hx)
            output, _ = pad_packed_sequence(output, case.batch_first)
    check(case, layer, x, hx, output, state)


@pytest.mark.parametrize("name", [n for n in cases() if Case.load(n).lengths is not None])
def test_packed_case_with_lengths(name):
    """The same cases once more, given as lengths."""
    case = Case.load(name)
    layer, x, hx = build(case), tensor(case.x), state_of(case)
    output, state = layer(x, hx, lengths=case.lengths)
    steps = case.output.shape[1 if case.batch_first else 0]  # the longest row's
    output, rest = output.split([steps, x.shape[case.batch_first] - steps], int(case.batch_first))
    assert not rest.any()
    check(case, layer, x, hx, output, state)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" in n])
def test_cell(name):
    case = Case.load(name)
    cell, x, hx = build(case), tensor(case.x), state_of(case)
    with elman.torch.require("kernel"):
        state, outputs = hx, []
        for step in x if case.loop else [x]:
            state = cell(step, state)
            outputs.append(parts(state)[0])
    check(case, cell, x, hx, torch.stack(outputs) if case.loop else None, state)


def test_all_are_there():
    kinds = [Case.load(name).kind for name in cases()]
    counts = {"GRU": 28, "RNN": 56, "LSTM": 6, "GRUCell": 9, "RNNCell": 10, "LSTMCell": 2}
    assert {k: kinds.count(k) for k in kinds} == counts
