"""Which path a call takes, that every path gives the layer's values, and dropout's masks."""

import numpy as np
import pytest
import torch
from doors import build
from reference import each, parts, whole
from test_torch_layers import (
    KINDS,
    agree,
    every_kind,
    every_kind_of_torchs,
    gradients,
    inputs,
    joined,
    leaf,
    run,
    same_bits,
    sizes_of,
    twins,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_reset_before import stock

import elman.torch
from elman.torch import modules, paths, require


@pytest.fixture(autouse=True)
def _fresh_counter():
    paths.clear()


every_cell = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lstm_proj"])


def cells(kind, *sizes, **options):
    """torch's cell and Elman's with the same weights."""
    torch.manual_seed(1)
    name, extra = KINDS[kind]
    theirs = stock(f"{name}Cell", **extra)(*sizes, **options)
    ours = getattr(elman.torch, f"{name}Cell")(*sizes, **extra, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def state_for(kind, *shape, **options):
    """A random state of a cell: h, or (h, c)."""
    return whole([torch.randn(*shape, **options) for _ in range(2 if kind == "lstm" else 1)])


def equal(actual, expected):
    """The very same: what torch computes, torch computed."""
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)


# --- Which path ----------------------------------------------------------------------------------


@every_kind
def test_counter(kind):
    """One a layer and call, whichever way it is called, and none for its backward."""
    _, ours = twins(kind, 3, 4, 3, bidirectional=True)
    x, hx = inputs(ours, 5, 2)
    calls = [
        lambda: ours(x),
        lambda: ours(x, hx, lengths=[1, 2]),
        lambda: ours(x, reset=torch.ones(5, 2, dtype=torch.bool)),
        lambda: ours(x[:, 0]),
        lambda: ours(pack_padded_sequence(x, [5, 1])),
        lambda: run(ours, x, hx),
    ]
    for n, call in enumerate(calls, 1):
        call()
        assert dict(paths) == {"kernel": 3 * n}


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_take_the_kernel(kind, dtype):
    _, cell = cells(kind, 3, 4, dtype=dtype)
    with require("kernel"):
        cell(torch.randn(2, 3, dtype=dtype))
        cell(torch.randn(3, dtype=dtype), state_for(kind, 4, dtype=dtype))
    assert dict(paths) == {"kernel": 2}


@every_kind_of_torchs
def test_autocast_is_torchs_own(kind):
    if kind == "lstm" and torch.bfloat16 in modules._LACKING:
        pytest.skip("torch's own fails on this processor: see test_torch_features.py")
    theirs, ours = twins(kind, 3, 4, 2)
    their_cell, our_cell = cells(kind.removesuffix("_proj"), 3, 4)
    x, hx = inputs(ours, 5, 2)
    with torch.autocast("cpu", torch.bfloat16), require("torch"):
        equal(ours(x, hx), theirs(x, hx))
        equal(our_cell(x[0]), their_cell(x[0]))
    with torch.autocast("cpu", torch.bfloat16, enabled=False), require("kernel"):
        ours(x, hx)


@every_kind_of_torchs
def test_meta_is_torchs_own(kind):
    theirs, ours = (m.to("meta") for m in twins(kind, 3, 4, 2))
    x = torch.empty(5, 2, 3, device="meta")
    with require("torch"):
        results = []
        for layer in (ours, theirs):
            try:
                results.append([t.shape for t in tree_leaves(layer(x))])
            except Exception as e:
                results.append((type(e), str(e)))
    assert results[0] == results[1]


@every_kind
def test_lengths_elsewhere_take_the_loop(kind):
    """torch's layer takes no lengths: autocast's values are those of packing, to bfloat16."""
    theirs, ours = twins(kind, 3, 4, 2, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with require("scan"):
            output, h_n = ours(x, hx, lengths=[5, 3, 1])
        assert dict(paths) == {"scan": 2}
        packed, expected = theirs(pack_padded_sequence(x, [5, 3, 1]), hx)
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed)
    # Two dozen roundings of half a unit in the eighth bit, of values below 1.
    torch.testing.assert_close(output.float(), padded.float(), rtol=0, atol=0.03)
    h_n, expected = joined(h_n).float(), joined(expected).float()
    torch.testing.assert_close(h_n, expected, rtol=0.03, atol=0.03)


@every_kind
def test_loop_agrees_with_the_kernel(kind, monkeypatch):
    """The loop's own arithmetic, in float64, with everything that a call can have."""
    _, ours = twins(kind, 3, 4, 2, dtype=torch.float64, bidirectional=True)
    x, hx = inputs(ours, 5, 4, torch.float64)
    reset = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    calls = [
        {},
        {"lengths": [5, 0, 2, 3]},
        {"reset": reset},
        {"lengths": [5, 0, 2, 3], "reset": reset},
        {"pack": lambda x: pack_padded_sequence(x, [2, 5, 1, 2], enforce_sorted=False)},
    ]
    expected = [run(ours, x, hx, **call) for call in calls]
    monkeypatch.setattr(modules, "needs_loop", lambda: True)
    with require("scan"):
        for call, e in zip(calls, expected, strict=True):
            agree(run(ours, x, hx, **call), e)


def test_input_of_another_layout():
    """Sparse tensors are torch's to refuse."""
    theirs, ours = twins("gru", 3, 4)
    x = torch.randn(5, 2, 3).to_sparse()
    with pytest.raises(RuntimeError) as expected:
        theirs(x)
    with require("torch"), pytest.raises(RuntimeError) as actual:
        ours(x)
    assert str(actual.value) == str(expected.value)


# --- require -------------------------------------------------------------------------------------


def test_require_refuses():
    _, layer = twins("gru", 3, 4)
    _, cell = cells("gru", 3, 4)
    x = torch.randn(5, 2, 3)
    with require("torch"):
        with pytest.raises(RuntimeError, match=r"^GRU: .*'torch' is required.* 'kernel'"):
            layer(x)
        with pytest.raises(RuntimeError, match=r"^GRUCell: .*'torch' is required.* 'kernel'"):
            cell(x[0])
    with torch.autocast("cpu", torch.bfloat16), require("kernel"):
        with pytest.raises(RuntimeError, match=r"^GRU: .*'kernel' is required.* 'torch'"):
            layer(x)
        with pytest.raises(RuntimeError, match=r"^GRU: .*'kernel' is required.* 'scan'"):
            layer(x, lengths=[1, 2])
        with pytest.raises(RuntimeError, match=r"^GRUCell: .*'kernel' is required.* 'torch'"):
            cell(x[0])
    assert not paths  # nothing ran
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert paths == {"torch": 1}


def test_require_ends():
    """With its block, however that ends, and the one around it holds again."""
    _, layer = twins("gru", 3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.raises(ZeroDivisionError), require("scan"):
        raise ZeroDivisionError
    layer(x)
    with require("scan"):
        with require("kernel"):
            layer(x)
        with pytest.raises(RuntimeError, match="is required"):
            layer(x)
    layer(x)


@pytest.mark.parametrize("name", ["cuda", "Kernel", "", None])
def test_require_knows_its_paths(name):
    with pytest.raises(ValueError, match=f"require: expected .*, got {name!r}"), require(name):
        pass


# --- Checkpointing -------------------------------------------------------------------------------


def test_checkpointing():
    theirs, ours = twins("gru", 3, 4, 2, dropout=0.5)
    x, _ = inputs(ours, 5, 2)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        given = leaf(x)
        output, h_n = torch.utils.checkpoint.checkpoint(layer, given, use_reentrant=False)
        results.append(gradients(layer, given, None, output.sum() + joined(h_n).sum()))
    agree(*results)


# --- Dropout -------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("p", [0.5, 0.1, 1.0])
@pytest.mark.parametrize("layout", ["time", "batch", "single", "packed", "unsorted"])
def test_dropout(kind, num_layers, bidirectional, p, layout):
    """Of one seed: the same masks, and random numbers that go on the same."""
    options = {"batch_first": layout == "batch", "bidirectional": bidirectional, "dropout": p}
    theirs, ours = twins(kind, 3, 7, num_layers, **options)
    padded = layout in ("time", "batch", "single")
    x, hx = inputs(ours, 6, 4, layout=layout if padded else "time")
    pack = {
        "packed": lambda x: pack_padded_sequence(x, [6, 4, 4, 1]),
        "unsorted": lambda x: pack_padded_sequence(x, [4, 1, 6, 4], enforce_sorted=False),
    }.get(layout)
    results, states = [], []
    for layer in (ours, theirs):
        torch.manual_seed(5)
        results.append(run(layer, x, hx, pack))
        states.append(torch.get_rng_state())
    agree(*results)
    assert torch.equal(*states)


@every_kind
def test_dropout_off(kind):
    """In eval() and with p = 0 there is none; no random number is drawn."""
    _, plain = twins(kind, 3, 7, 2)
    x, hx = inputs(plain, 6, 4)
    expected = run(plain, x, hx)
    for p, training in ((0.5, False), (0.0, True)):
        _, ours = twins(kind, 3, 7, 2, dropout=p)
        ours.train(training)
        before = torch.get_rng_state()
        same_bits(run(ours, x, hx), expected)
        assert torch.equal(torch.get_rng_state(), before)


@every_kind
def test_dropout_spares_states_and_the_last_layer(kind):
    _, plain = twins(kind, 3, 7, 2)
    _, ours = twins(kind, 3, 7, 2, dropout=1.0)
    x, hx = inputs(ours, 6, 4)
    output, h_n = ours(x, hx)
    first, last = (each(lambda t, k=k: t[k], h_n) for k in range(2))
    # The first layer's, as if nothing was dropped.
    equal(first, each(lambda t: t[0], plain(x, hx)[1]))
    assert torch.equal(parts(last)[0], output[-1])  # the last's, not dropped either
    features = sizes_of(ours)[0]
    _, top = twins(kind, features, 7)
    top.load_state_dict(
        {k.replace("_l1", "_l0"): w for k, w in plain.state_dict().items() if "_l1" in k}
    )
    above = top(torch.zeros(6, 4, features), each(lambda t: t[1:], hx))
    assert torch.equal(output, above[0])


@every_kind
def test_dropout_beside_lengths_and_reset(kind):
    """Masks are drawn for the padded tensor: that of dropout on it, with the same seed."""
    _, ours = twins(kind, 3, 5, 2, dropout=0.5, bidirectional=True)
    stack = []
    for k, size in enumerate((3, 2 * sizes_of(ours)[0])):
        _, layer = twins(kind, size, 5, bidirectional=True)
        layer.load_state_dict(
            {n.replace(f"_l{k}", "_l0"): w for n, w in ours.state_dict().items() if f"_l{k}" in n}
        )
        stack.append(layer)
    x, hx = inputs(ours, 6, 4)
    given = {"lengths": [6, 0, 2, 5], "reset": torch.zeros(6, 4, dtype=torch.bool)}
    given["reset"][2] = True
    torch.manual_seed(6)
    output, h_n = ours(x, hx, **given)
    torch.manual_seed(6)
    below, first = stack[0](x, each(lambda t: t[:2], hx), **given)
    above, second = stack[1](nn.functional.dropout(below, 0.5), each(lambda t: t[2:], hx), **given)
    assert torch.equal(output, above)
    assert torch.equal(joined(h_n), torch.cat([joined(first), joined(second)]))


# --- The two packages ----------------------------------------------------------------------------

EXTENTS = {
    "plain": {},
    "lengths": {"lengths": np.array([3, 0, 6, 5])},
    "reset": {"reset": np.random.default_rng(0).random((6, 4)) < 0.3},
}


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize(
    "given", [*EXTENTS.values(), EXTENTS["lengths"] | EXTENTS["reset"]], ids=[*EXTENTS, "both"]
)
def test_packages_agree_to_the_bit(kind, dtype, options, given):
    _, layer = twins(kind, 5, 9, dtype=getattr(torch, dtype), **options)
    extra = {"proj_size": layer.proj_size} if layer.proj_size else {}
    other = build(elman, kind.removesuffix("_proj"), 5, 9, dtype=dtype, **extra, **options)
    other.load_state_dict({k: v.numpy() for k, v in layer.state_dict().items()})
    x, hx = map(leaf, inputs(layer, 6, 4, getattr(torch, dtype)))
    output, h_n = layer(x, hx, **given)
    d_output, d_h_n = torch.randn_like(output), each(torch.randn_like, h_n)
    torch.autograd.backward([output, *parts(h_n)], [d_output, *parts(d_h_n)])
    grads = dict(zip(("h_0", "c_0"), (t.grad for t in parts(hx)), strict=False))
    grads |= {"x": x.grad, **{k: p.grad for k, p in layer.named_parameters()}}

    def array(t):
        return t.detach().numpy()

    arrays = x.detach().numpy(), each(array, hx)
    inference = other(*arrays, **given)
    *results, vjp = other.vjp(*arrays, **given)
    for pair in (inference, results):
        np.testing.assert_array_equal(pair[0], array(output))
        for a, t in zip(parts(pair[1]), parts(h_n), strict=True):
            np.testing.assert_array_equal(a, array(t))
    given_back = vjp(array(d_output), each(array, d_h_n))
    assert given_back.keys() == grads.keys()
    for key, gradient in given_back.items():
        np.testing.assert_array_equal(gradient, grads[key].numpy(), err_msg=key)


@every_cell
@pytest.mark.parametrize("batch", [(), (4,)])
def test_packages_cells_agree_to_the_bit(kind, batch):
    _, cell = cells(kind, 5, 9)
    other = build(elman, kind, 5, 9, step=True)
    other.load_state_dict({k: v.numpy() for k, v in cell.state_dict().items()})
    x, h = torch.randn(*batch, 5), state_for(kind, *batch, 9)
    for given in ((x,), (x, h)):
        actual, expected = cell(*given), other(*(each(torch.Tensor.numpy, t) for t in given))
        for a, e in zip(parts(actual), parts(expected), strict=True):
            np.testing.assert_array_equal(a.detach().numpy(), e)
