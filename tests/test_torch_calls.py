"""Calls of the PyTorch package that the engine does in one: which, and that they are the same.

The long way is measured against torch.nn in the other files; here the short one is held to its
bits, and everything unusual to the long one.
"""

import contextlib
import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from test_torch_layers import every_dtype, leaf
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import elman.torch
from elman.torch import calls

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="before torch 2.9 tensors are not lent: every call goes the long way",
)

LAYERS = ["RNN", "GRU", "GRU, reset before", "LSTM"]
CELLS = ["RNNCell", "GRUCell", "GRUCell, reset before", "LSTMCell"]
L, N, D, H = 5, 3, 4, 6


def make(name, *sizes, **options):
    """The package's module of that name."""
    kind, _, before = name.partition(", ")
    options |= {"reset_after": False} if before else {}
    return getattr(elman.torch, kind)(*sizes, **options)


@pytest.fixture
def taken(monkeypatch):
    """Whether each call so far was done in one."""
    seen, run = [], calls.run

    def spy(*arguments):
        results = run(*arguments)
        seen.append(results is not None)
        return results

    monkeypatch.setattr(calls, "run", spy)
    return seen


@contextlib.contextmanager
def the_long_way():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "run", lambda *_: None)
        yield


def state_for(name, *shape, dtype=torch.float32, proj=0):
    """Random h, or (h, c)."""
    h = torch.randn(*shape, proj or H, dtype=dtype)
    return (h, torch.randn(*shape, H, dtype=dtype)) if name.startswith("LSTM") else h


def record(module, x, hx, **extent):
    """Results, and the gradients of everything by a random cotangent of every result."""
    x, hx = leaf((x, hx))
    results = tree_leaves(module(x, hx, **extent))
    torch.manual_seed(5)
    loss = sum((r * torch.randn_like(r)).sum() for r in results)
    variables = [*tree_leaves((x, hx)), *module.parameters()]
    variables = [v for v in variables if isinstance(v, torch.Tensor)]
    return results, torch.autograd.grad(loss, variables)


def assert_same(actual, expected):
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype, a.requires_grad) == (e.shape, e.dtype, e.requires_grad)
        assert torch.equal(a, e)


def assert_same_both_ways(taken, module, x, hx, **extent):
    results, gradients = record(module, x, hx, **extent)
    with torch.no_grad():
        plain = module(x, hx, **extent)
    assert taken == [True, True]
    with the_long_way():
        expected, expected_gradients = record(module, x, hx, **extent)
    assert_same(results, expected)
    assert [r.stride() for r in results] == [e.stride() for e in expected]
    assert_same(gradients, expected_gradients)
    assert_same(plain, [e.detach() for e in expected])
    taken.clear()


# --- The same bits -------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("name", LAYERS)
def test_layers(taken, name, dtype):
    torch.manual_seed(0)
    lengths, reset = torch.tensor([2, 5, 0]), torch.rand(L, N) < 0.3
    flags = itertools.product((1, 2, 3), *[(False, True)] * 4)
    for layers, both, first, bias, is_given in flags:
        proj = 2 if name == "LSTM" and bias else 0
        options = {"bidirectional": both, "batch_first": first, "bias": bias, "dtype": dtype}
        options |= {"proj_size": proj} if proj else {}
        module = make(name, D, H, layers, **options)
        module.recompute = is_given
        K = layers * (1 + both)
        hx = state_for(name, K, N, dtype=dtype, proj=proj) if is_given else None
        x = torch.randn(*((N, L) if first else (L, N)), D, dtype=dtype)
        where = reset.T if first else reset
        assert_same_both_ways(taken, module, x, hx)
        assert_same_both_ways(taken, module, x, hx, lengths=lengths)
        assert_same_both_ways(taken, module, x, hx, lengths=lengths, reset=where)
        hx = state_for(name, K, dtype=dtype, proj=proj) if is_given else None
        assert_same_both_ways(taken, module, x[0], hx, reset=where[0])


@every_dtype
@pytest.mark.parametrize("name", CELLS)
def test_cells(taken, name, dtype):
    torch.manual_seed(0)
    for bias, is_given, shape in itertools.product((0, 1), (0, 1), ((), (1,), (2,), (N,))):
        module = make(name, D, H, bias=bool(bias), dtype=dtype)
        hx = state_for(name, *shape, dtype=dtype) if is_given else None
        assert_same_both_ways(taken, module, torch.randn(*shape, D, dtype=dtype), hx)


@every_dtype
@pytest.mark.parametrize("name", LAYERS)
def test_one_step_of_few_rows(taken, name, dtype):
    """Of up to 8 weights are read as they lie; the long way packs them."""
    torch.manual_seed(0)
    options = itertools.product((1, 3), (0, 1), (0, 1), (1, 2, 7, 8, 9))
    for layers, both, recompute, rows in options:
        options = {"bidirectional": bool(both), "dtype": dtype}
        module = make(name, 33, 70, layers, **options)
        module.recompute = bool(recompute)
        h = torch.randn(layers * (1 + both), rows, 70, dtype=dtype)
        hx = (h, torch.randn_like(h)) if name == "LSTM" else h
        x = torch.randn(1, rows, 33, dtype=dtype)
        assert_same_both_ways(taken, module, x, hx)
        assert_same_both_ways(taken, module, x, None)
        assert_same_both_ways(taken, module, x, hx, lengths=torch.arange(rows, 0, -1) // rows)
        assert_same_both_ways(taken, module, x, hx, reset=torch.ones(1, rows, dtype=torch.bool))


STRIDED = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "offset": lambda t: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view(t.shape),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("lay", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_strides(taken, name, lay):
    """Of x, of the state, of the weights and of the gradients of the results."""
    torch.manual_seed(0)
    module = make(name, D, H)
    shape = (N,) if name in CELLS else (2, N)
    x, hx = torch.randn(*shape, D), state_for(name, *((N,) if name in CELLS else (1, N)))
    with the_long_way():
        expected = record(module, lay(x).contiguous(), tree_map(lambda t: t.contiguous(), hx))
    for weight in module.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.mT.contiguous().mT
    if lay is not STRIDED["expanded"]:
        hx = tree_map(lay, hx)
    x, hx = tree_map(lambda t: t.detach().requires_grad_(), (lay(x), hx))
    results = tree_leaves(module(x, hx))
    assert taken == [True]
    torch.manual_seed(5)
    cotangents = [lay(torch.randn_like(r)) for r in results]
    if lay is STRIDED["expanded"]:
        return assert_same(results, expected[0])
    variables = [*tree_leaves((x, hx)), *module.parameters()]
    assert_same(results, expected[0])
    assert_same(torch.autograd.grad(results, variables, cotangents), expected[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(taken, threads):
    torch.manual_seed(0)
    module = elman.torch.LSTM(32, 64, 2, bidirectional=True)
    x = torch.randn(20, 16, 32)
    expected = record(module, x, None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(record(module, x, None), expected)
    finally:
        torch.set_num_threads(before)
    assert taken == [True, True]


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
@pytest.mark.parametrize("alone", range(3))
def test_gradients_of_a_few(taken, name, alone):
    """By one result, of some variables, the others being frozen."""
    torch.manual_seed(0)
    module = make(name, D, H)
    x = torch.randn(2, N, D) if name in LAYERS else torch.randn(N, D)
    for weight in list(module.parameters())[alone : alone + 2]:
        weight.requires_grad_(False)
    x.requires_grad_(alone == 1)

    def found():
        results = tree_leaves(module(x))
        module.zero_grad()
        x.grad = None
        results[alone % len(results)].square().sum().backward()
        return [t.grad for t in (x, *module.parameters())]

    actual = found()
    assert taken == [True]
    with the_long_way():
        expected = found()
    assert [a is None for a in actual] == [e is None for e in expected]
    assert_same([a for a in actual if a is not None], [e for e in expected if e is not None])


# --- What is turned away -------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def within(context):
    def call(module, x):
        with context():
            return module(x)

    return call


@contextlib.contextmanager
def dual_level():
    with forward_ad.dual_level():
        yield


def traced(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, (x,), check_trace=False)(x)


def with_weight(change):
    """With another weight in the module's place of its own; the same values."""

    def call(module, x):
        module = copy.deepcopy(module)
        name, weight = next((n, w) for n, w in module.named_parameters() if "weight_hh" in n)
        module._parameters[name] = change(weight.detach())
        return module(x)

    return call


UNUSUAL = {
    "torch.compile": lambda module, x: torch.compile(module, backend="eager")(x),
    "jit.trace": traced,
    "vmap": lambda module, x: tree_map(lambda t: t[0], torch.func.vmap(module)(x[None])),
    "func.grad": lambda module, x: torch.func.vjp(module, x)[0],
    "within vmap": lambda module, x: tree_map(
        lambda t: t[0], torch.func.vmap(lambda _: module(x))(torch.ones(1))
    ),
    "jvp": lambda module, x: torch.func.jvp(module, (x,), (torch.ones_like(x),))[0],
    "functionalize": lambda module, x: torch.func.functionalize(module)(x),
    "forward mode": within(dual_level),
    "dispatch mode": within(DispatchMode),
    "function mode": within(FunctionMode),
    "default device": within(lambda: torch.device("cpu")),
    "profiler": within(torch.autograd.profiler.profile),
    "negated x": lambda module, x: module(torch._neg_view(-x)),
    "negated weight": with_weight(lambda w: torch._neg_view(-w)),
    "x of a subclass": lambda module, x: module(x.as_subclass(Subclass)),
    "weight of a subclass": with_weight(lambda w: w.as_subclass(Subclass)),
    "weights by functional_call under grad": lambda module, x: torch.func.vjp(
        lambda weights: torch.func.functional_call(module, weights, (x,)),
        {k: w.detach() for k, w in module.named_parameters()},
    )[0],
}


@pytest.mark.parametrize("name", ["GRU", "LSTMCell"])
@pytest.mark.parametrize("call", UNUSUAL.values(), ids=UNUSUAL)
def test_turned_away(taken, name, call):
    """Where somebody watches, or the tensors are no plain ones; the results are the same."""
    torch.manual_seed(0)
    module = make(name, D, H)
    x = torch.randn(2, N, D) if name in LAYERS else torch.randn(N, D)
    expected = tree_leaves(module(x))
    assert taken == [True]
    taken.clear()
    actual = tree_leaves(call(module, x))
    assert not any(taken)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach().as_subclass(torch.Tensor), e.detach())


REFUSED = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([*x]),
    "float64": lambda x: x.double(),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "four bits": lambda x: torch.empty(x.shape, dtype=torch.uint4),
    "an array": lambda x: x.numpy(),
    "None": lambda x: None,
    "features": lambda x: x[..., 1:],
    "axes": lambda x: x[None, None],
    "no rows": lambda x: x[..., :0, :],
    "freed": lambda x: freed(x.clone()),
}


def freed(t):
    t.untyped_storage().resize_(0)
    return t


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_refused(taken, name, change):
    """What the module itself may refuse, in its own words, is not looked at in one call."""
    module = make(name, D, H)
    x = change(torch.randn(2, N, D) if name in LAYERS else torch.randn(N, D))
    with contextlib.suppress(Exception):
        module(x)
    assert taken == [False]


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 5},
        {"input_size": 5},
        {"num_layers": 2},
        {"bidirectional": True},
        {"bidirectional": 1},
        {"batch_first": 1},
        {"bias": False},
        {"proj_size": 2},
        {"weight_hh_l0": nn.Parameter(torch.ones(4, 5))},
        {"bias_hh_l0": None},
    ],
    ids=str,
)
def test_attributes_set_anew(change):
    """An error, as torch.nn has, with the layer's name and what is wrong."""
    for module in (nn.GRU(D, H), elman.torch.GRU(D, H)):
        for name, value in change.items():
            setattr(module, name, value)
        with pytest.raises((RuntimeError, TypeError, ValueError, KeyError)) as error:
            module(torch.randn(2, N, D))
    assert "_engine" not in str(error.value)


def test_weights_are_named_in_errors():
    layer, cell = elman.torch.GRU(D, H), elman.torch.GRUCell(D, H)
    layer.weight_hh_l0 = nn.Parameter(torch.ones(4, 5))
    cell.weight_hh = nn.Parameter(torch.ones(4, 5))
    with pytest.raises(RuntimeError, match=r"GRU: weight_hh_l0 must have shape \(18, 6\)"):
        layer(torch.randn(2, N, D))
    with pytest.raises(RuntimeError, match=r"GRUCell: weight_hh must have shape \(18, 6\)"):
        cell(torch.randn(N, D))
    layer = elman.torch.GRU(D, H)
    layer.bidirectional = True
    with pytest.raises(RuntimeError, match=r"GRU: weights missing: .*weight_hh_l0_reverse"):
        layer(torch.randn(2, N, D))


def test_autocast_goes_the_long_way(taken):
    with torch.autocast("cpu", torch.bfloat16):
        elman.torch.GRUCell(D, H)(torch.randn(N, D))
    assert taken == [False]


def test_dropout_goes_the_long_way(taken):
    layer = elman.torch.GRU(D, H, 2, dropout=0.5)
    x = torch.randn(2, N, D)
    layer(x)
    layer.eval()(x)
    assert taken == [False, True]


def test_a_required_path(taken):
    with elman.torch.require("kernel"):
        elman.torch.GRUCell(D, H)(torch.randn(N, D))
        with pytest.raises(RuntimeError, match="required"), elman.torch.require("scan"):
            elman.torch.GRUCell(D, H)(torch.randn(N, D))
        elman.torch.GRUCell(D, H)(torch.randn(N, D))
    assert taken == [True, False, True]


# --- Autograd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_derivatives(taken, name):
    """First, second and batched ones, and of a tensor that is there twice."""
    torch.manual_seed(0)
    module = make(name, 3, 3).double()
    double = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(2, 2, 3, **double) if name in LAYERS else torch.randn(2, 3, **double)

    def f(x, *weights):
        h = x[:1] if name in LAYERS else x
        return tuple(tree_leaves(module(x, (h, h) if name.startswith("LSTM") else h)))

    inputs = (x, *module.parameters())
    assert gradcheck(f, inputs, check_batched_grad=True)
    assert gradgradcheck(f, inputs, fast_mode=True)
    assert all(taken)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_hooks_on_results_without_a_gradient(taken, name):
    """They are not called, as of torch.nn."""
    module = make(name, D, H)
    x = torch.randn(2, N, D) if name in LAYERS else torch.randn(N, D)
    for ways in (contextlib.nullcontext, the_long_way):
        with ways():
            for n in range(len(tree_leaves(module(x)))):
                results = tree_leaves(module(x))
                for r in results:
                    r.register_hook(lambda g: g.clamp(-1, 1))
                results[n].sum().backward()
                assert all(w.grad is not None for w in module.parameters())
                module.zero_grad()


def test_backward_twice(taken):
    module = elman.torch.GRU(D, H)
    y = module(torch.randn(2, N, D))[0].sum()
    y.backward(retain_graph=True)
    first = [w.grad.clone() for w in module.parameters()]
    y.backward()
    assert_same([w.grad for w in module.parameters()], [2 * g for g in first])
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    assert taken == [True]


@pytest.mark.parametrize("which", ["x", "lengths", "weight"])
def test_changes_in_place_are_noticed(taken, which):
    module = elman.torch.GRU(D, H)
    x, lengths = torch.randn(2, N, D), torch.tensor([2, 1, 2])
    y = module(x, lengths=lengths)[0].sum()
    with torch.no_grad():
        {"x": x, "lengths": lengths, "weight": module.weight_hh_l0}[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert taken == [True]


@pytest.mark.parametrize("value", [torch.ones(3, 4), torch.ones(18, 6, dtype=torch.float64)])
def test_weights_of_another_kind_before_backward(taken, value):
    module = elman.torch.GRU(D, H)
    y = module(torch.randn(2, N, D))[0].sum()
    module.weight_hh_l0.data = value
    with pytest.raises(RuntimeError, match=r"^GRU: .*weight"):
        y.backward()
    assert taken == [True]


def test_hooks_on_saved_tensors(taken):
    """All that is kept goes through them, and comes back."""
    module, x = elman.torch.LSTM(D, H, 2), torch.randn(L, N, D)
    packed = []

    def pack(t):
        packed.append(t.numel())
        return t.numpy(force=True).copy()

    module(x)[0].square().sum().backward()
    expected = [w.grad for w in module.parameters()]
    module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        y, _ = module(x)
    y.square().sum().backward()
    assert_same([w.grad for w in module.parameters()], expected)
    # x, the weights, and one tensor of all else: 6 H a row and layer, and the output between.
    weights = sum(w.numel() for w in module.parameters())
    assert sum(packed) == x.numel() + weights + 2 * (6 * L + 2) * N * H + L * N * H
    assert taken == [True, True]


def test_written_to_behind_autograds_back(taken):
    """Weights are read anew: by ``.data``, by NumPy, by another storage."""
    module, x = elman.torch.GRUCell(D, H), torch.randn(1, D)
    changes = [
        lambda w: w.data.mul_(2),
        lambda w: np.multiply(w.detach().numpy(), 2, out=w.detach().numpy()),
        lambda w: w.set_(w.detach().clone() * 2),
        lambda w: setattr(w, "data", w.data * 2),
    ]
    with torch.no_grad():
        for change in changes:
            before = module(x)
            change(module.weight_hh)
            change(module.weight_ih)
            with the_long_way():
                expected = module(x)
            assert torch.equal(module(x), expected)
            assert not torch.equal(before, expected)
    assert all(taken)


# --- Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [contextlib.nullcontext, the_long_way])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_results_are_torchs_own(name, ways):
    """They can be resized, freed, shared and written to, as any others."""
    module = make(name, D, H)
    x = torch.randn(2, N, D) if name in LAYERS else torch.randn(N, D)
    with ways(), torch.no_grad():
        for y in tree_leaves(module(x)):
            y.resize_(100, 100)
            y.untyped_storage().resize_(0)
        for y in tree_leaves(module(x)):
            assert not y.requires_grad
            assert y.share_memory_().is_shared()
        out = tree_leaves(module(x))[0]
        torch.mul(torch.ones(50, 50), 2, out=out.resize_(0))
    with ways(), torch.inference_mode():
        assert all(y.is_inference() for y in tree_leaves(module(x)))


def test_written_to_in_place():
    """A result is nobody else's memory, and no leaf."""
    module, x = elman.torch.LSTM(D, H), torch.randn(2, N, D)
    expected = record(module, x, None)[1]
    x.requires_grad_()
    output, (h, c) = module(x)
    torch.manual_seed(5)
    loss = sum((r * torch.randn_like(r)).sum() for r in (output, h, c))
    for t in (output, h, c):
        t.mul_(2)
    actual = torch.autograd.grad(loss + 0 * output.sum(), [x, *module.parameters()])
    assert_same(actual, expected)


def test_lengths_out_of_range(taken):
    layer = elman.torch.GRU(D, H)
    with pytest.raises(RuntimeError, match="GRU: lengths must lie between 0 and L = 2, got 3"):
        layer(torch.randn(2, N, D), lengths=torch.tensor([1, 3, 0]))
    assert taken == [False]


def test_a_default_device():
    with torch.device("meta"):
        layer = elman.torch.GRU(D, H, device="cpu")
        output, _ = layer(torch.randn(2, N, D, device="cpu"), lengths=[1, 2, 0])
    assert output.device.type == "cpu"
