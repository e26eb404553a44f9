"""torch's own generators of tests for its modules, on Elman's classes.

An entry of ``module_db`` makes the constructor arguments and inputs that torch tests a class with,
and the errors that it has to raise; here each is run on torch's class and on Elman's.
"""

import copy
import itertools
import pickle

import pytest
import torch
from test_torch_layers import agree
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

import elman.torch

common_modules = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="torch's generators need expecttest"
)

PACKED = (nn.RNN, nn.GRU)  # whose entries have packed sequences, too
CLASSES = (*PACKED, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
ENTRIES = {e.module_cls: e for e in common_modules.module_db if e.module_cls in CLASSES}
every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda e: e.name)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_mode = pytest.mark.parametrize("training", [False, True])


def test_entries():
    assert set(ENTRIES) == set(CLASSES)


def samples(entry, test, dtype, training, make="module_inputs_func"):
    """The entry's samples, those with packed sequences included, unless it skips the test."""
    decorators = entry.get_decorators("TestModule", test, "cpu", dtype, {})
    if any(d is not common_modules.skipMPS for d in decorators):
        pytest.skip(f"module_db's entry for {entry.name} skips {test}")
    given = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    torch.manual_seed(0)
    found = getattr(entry, make)(entry, **given)
    if make == "module_inputs_func" and entry.module_cls in PACKED:
        found += entry.module_inputs_func(entry, **given, with_packed_sequence=True)
    return found


def build(cls, arguments, dtype, training):
    return cls(*arguments.args, **{"dtype": dtype, **arguments.kwargs}).train(training)


def twins(entry, sample, dtype, training):
    """torch's module and Elman's with the same weights."""
    ours = getattr(elman.torch, entry.module_cls.__name__)
    theirs, ours = (
        build(cls, sample.constructor_input, dtype, training) for cls in (entry.module_cls, ours)
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(given):
    """All tensors of arguments or results, a packed sequence's data for itself."""
    found = given.values() if isinstance(given, dict) else given
    if isinstance(given, torch.Tensor | PackedSequence):
        found = [given]
    flat = [t.data if isinstance(t, PackedSequence) else t for t in found]
    return [t for t in tree_leaves(flat) if isinstance(t, torch.Tensor)]


def run(module, given, order=1):
    """Results, and gradients of the first or up to the second order, by every leaf."""
    arguments = tensors(given.args) + tensors(given.kwargs)
    leaves = [t for t in (*arguments, *module.parameters()) if t.requires_grad]
    results = tensors(module(*given.args, **given.kwargs))
    random = torch.Generator().manual_seed(1)
    found = list(results)
    for _ in range(order):
        cotangents = [torch.randn(t.shape, generator=random, dtype=t.dtype) for t in results]
        results = torch.autograd.grad(results, leaves, cotangents, create_graph=order > 1)
        found += results
    return dict(enumerate(found))


@every_entry
@every_dtype
@every_mode
def test_forward_and_gradients(entry, dtype, training):
    for sample in samples(entry, "test_grad", dtype, training):
        modules = twins(entry, sample, dtype, training)
        with elman.torch.require("kernel"):
            actual = run(modules[1], sample.forward_input)
        # Some of the samples' gradients nearly cancel, for which torch's tests have this tolerance.
        torch.testing.assert_close(actual, run(modules[0], sample.forward_input))


@every_entry
def test_gradients_of_gradients(entry):
    for sample in samples(entry, "test_gradgrad", torch.float64, True):
        theirs, ours = twins(entry, sample, torch.float64, True)
        agree(run(ours, sample.forward_input, 2), run(theirs, sample.forward_input, 2))


@every_entry
@every_mode
def test_references(entry, training):
    """The entry's own idea of the result: an input without batch is a batch of one."""
    for sample in samples(entry, "test_forward", torch.float64, training):
        if any(isinstance(a, PackedSequence) for a in sample.forward_input.args):
            continue  # which always are a batch
        _, ours = twins(entry, sample, torch.float64, training)
        given = sample.forward_input
        expected = sample.reference_fn(ours, *given.args, **given.kwargs)
        actual = tensors(ours(*given.args, **given.kwargs))
        agree(dict(enumerate(actual)), dict(enumerate(tensors(expected))))


@every_entry
def test_inputs_that_do_not_lie_together(entry):
    for sample in samples(entry, "test_non_contiguous_tensors", torch.float64, True):
        theirs, ours = twins(entry, sample, torch.float64, True)
        given = sample.forward_input
        if any(isinstance(a, PackedSequence) for a in given.args):
            continue
        apart = tree_map(
            lambda a: torch.repeat_interleave(a, 2, -1).detach()[..., ::2].requires_grad_(),
            given.args,
        )
        assert not any(a.is_contiguous() for a in tree_leaves(apart) if a.shape[-1] > 1)
        given = common_modules.FunctionInput(*apart, **given.kwargs)
        agree(run(ours, given), run(theirs, given))


@every_entry
def test_pickled_and_copied(entry):
    for sample in samples(entry, "test_pickle", torch.float32, True):
        theirs, ours = twins(entry, sample, torch.float32, True)
        assert repr(ours) == repr(theirs)
        expected = run(ours, sample.forward_input)
        for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            actual = run(again, sample.forward_input)
            assert all(torch.equal(actual[k], e) for k, e in expected.items())


@every_entry
@every_mode
def test_errors(entry, training):
    """What torch's class has to refuse, with the error that it has to give."""
    found = samples(entry, "test_errors", torch.float32, training, "module_error_inputs_func")
    assert found
    for case in found:
        sample = case.module_error_input
        construct, forward = sample.constructor_input, sample.forward_input
        cls = getattr(elman.torch, entry.module_cls.__name__)
        if case.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                cls(*construct.args, **construct.kwargs)
            continue
        module = build(cls, construct, torch.float32, training)
        with pytest.raises(case.error_type, match=case.error_regex):
            module(*forward.args, **forward.kwargs)


@pytest.mark.parametrize("name", [cls.__name__ for cls in CLASSES])
def test_generators_cover_nonlinearities_projections_and_packing(name):
    """That the samples are what they are taken for."""
    entry = ENTRIES[getattr(nn, name)]
    found = samples(entry, "test_forward", torch.float32, True)
    given = itertools.chain.from_iterable(s.forward_input.args for s in found)
    assert any(isinstance(a, PackedSequence) for a in given) == (entry.module_cls in PACKED)
    if name.startswith("RNN"):
        kinds = {s.constructor_input.kwargs.get("nonlinearity", "tanh") for s in found}
        assert kinds == {"tanh", "relu"}
    if name == "LSTM":
        assert len({s.constructor_input.kwargs.get("proj_size", 0) for s in found}) > 1
