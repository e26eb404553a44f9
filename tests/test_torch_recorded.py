"""Every recorded case of PyTorch's layers and cells, through the PyTorch door."""

import pytest
import torch
from recorded import Case, cases
from reference import assert_close
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman.torch


def build(case):
    module = getattr(elman.torch, case.kind)(**case.arguments, dtype=getattr(torch, case.dtype))
    module.load_state_dict({k: torch.from_numpy(w) for k, w in case.weights.items()})
    return module.train(case.training)


def tensor(array):
    return None if array is None else torch.tensor(array, requires_grad=array.dtype.kind == "f")


def check(case, module, x, h_0, output, h_n):
    results = [(output, case.output, case.d_output), (h_n, case.h_n, case.d_h_n)]
    for result, expected, _ in results:
        if expected is not None:
            assert_close(result.detach(), expected, case.dtype)
    sum((t * torch.from_numpy(d)).sum() for t, _, d in results if d is not None).backward()
    leaves = {"x": x, "h_0": h_0, **dict(module.named_parameters())}
    assert case.gradients.keys() == {name for name, t in leaves.items() if t is not None}
    for name, expected in case.gradients.items():
        assert_close(leaves[name].grad, expected, case.dtype, name)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" not in n])
def test_layer(name):
    case = Case.load(name)
    layer, x, h_0 = build(case), tensor(case.x), tensor(case.h_0)
    with elman.torch.require("kernel"):
        if case.lengths is None:
            output, h_n = layer(x, h_0)
        else:
            given = (torch.from_numpy(case.lengths), case.batch_first, case.enforce_sorted)
            output, h_n = layer(pack_padded_sequence(x, *given), h_0)
            output, _ = pad_packed_sequence(output, case.batch_first)
    check(case, layer, x, h_0, output, h_n)


@pytest.mark.parametrize("name", [n for n in cases() if Case.load(n).lengths is not None])
def test_packed_case_with_lengths(name):
    """The same cases once more, given as lengths."""
    case = Case.load(name)
    layer, x, h_0 = build(case), tensor(case.x), tensor(case.h_0)
    output, h_n = layer(x, h_0, lengths=case.lengths)
    steps = case.output.shape[1 if case.batch_first else 0]  # the longest row's
    output, rest = output.split([steps, x.shape[case.batch_first] - steps], int(case.batch_first))
    assert not rest.any()
    check(case, layer, x, h_0, output, h_n)


@pytest.mark.parametrize("name", [n for n in cases() if "cell" in n])
def test_cell(name):
    case = Case.load(name)
    cell, x, h_0 = build(case), tensor(case.x), tensor(case.h_0)
    with elman.torch.require("kernel"):
        h, states = h_0, []
        for step in x if case.loop else [x]:
            h = cell(step, h)
            states.append(h)
    check(case, cell, x, h_0, torch.stack(states) if case.loop else h, h)


def test_all_are_there():
    kinds = [Case.load(name).kind for name in cases()]
    assert {k: kinds.count(k) for k in kinds} == {"GRU": 28, "RNN": 56, "GRUCell": 9, "RNNCell": 10}
