"""The PyTorch package's layers against torch.nn's: outputs, states and every gradient."""

import warnings

import pytest
import torch
from reference import each, parts, whole
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)
from torch.utils._pytree import tree_leaves, tree_map
from torch_reset_before import stock

import elman.torch
from elman.torch import operators

KINDS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "lstm": ("LSTM", {}),
    "lstm_proj": ("LSTM", {"proj_size": 0.5}),  # of the hidden size
}
DTYPES = [torch.float32, torch.float64]
# torch says once that oneDNN has no projections: now, and not in the middle of a test.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    nn.LSTM(1, 2, proj_size=1)(torch.ones(1, 1, 1))
every_kind = pytest.mark.parametrize("kind", KINDS)
every_kind_of_torchs = pytest.mark.parametrize("kind", [k for k in KINDS if k[4:9] != "reset"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def twins(kind, *sizes, dtype=torch.float32, **options):
    """torch's layer and Elman's with the same weights; seeds torch's random numbers, too."""
    torch.manual_seed(1)
    name, extra = KINDS[kind]
    if "proj_size" in extra:
        extra = {"proj_size": int(extra["proj_size"] * sizes[1])}
    theirs = stock(name, **extra)(*sizes, **options, dtype=dtype)
    ours = getattr(elman.torch, name)(*sizes, **extra, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def sizes_of(layer):
    """The features of its states: of h, and of an LSTM's c."""
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size]
    return sizes[: 2 if layer.mode == "LSTM" else 1]


def joined(state):
    """h, or an LSTM's h and c side by side."""
    return torch.cat(parts(state), -1)


# In half precision torch rounds the state at every step, and the gates too.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


def agree(actual, expected):
    """Compare mappings of tensors, each relative to the largest value that is expected in it."""
    assert actual.keys() == expected.keys()
    for name, e in expected.items():
        a = actual[name]
        if isinstance(e, tuple):
            agree(dict(enumerate(a)), dict(enumerate(e)))
            continue
        if e is None:
            assert a is None, name
            continue
        assert a is not None, name
        assert (a.shape, a.dtype) == (e.shape, e.dtype), name
        if e.numel():
            difference = (a - e).abs().max().item()
            assert difference <= TOLERANCE[e.dtype] * e.abs().max().item(), (name, difference)


def same_bits(actual, expected):
    """Compare mappings of tensors bit for bit."""
    assert actual.keys() == expected.keys()
    for name, e in expected.items():
        a = actual[name]
        if isinstance(e, tuple):
            same_bits(dict(enumerate(a)), dict(enumerate(e)))
        else:
            assert a is e if a is None or e is None else torch.equal(a, e), name


def leaf(tensors):
    """A copy to be differentiated by; of a state, of each part."""
    return tree_map(lambda t: None if t is None else t.detach().clone().requires_grad_(), tensors)


def gradients(layer, x, hx, loss):
    """Backpropagate the loss; the gradients of x, hx and every weight by name."""
    layer.zero_grad()
    loss.backward()
    named = {"x": x, "hx": hx, **dict(layer.named_parameters())}
    return {
        f"d_{name}": tree_map(lambda t: None if t is None else t.grad, given)
        for name, given in named.items()
    }


def run(layer, x, hx=None, pack=None, used=("output", "h_n", "c_n"), **options):
    """Output, final state and all gradients, for cotangents that depend on the shapes alone."""
    x, hx = leaf(x), leaf(hx)
    output, state = layer(x if pack is None else pack(x), hx, **options)
    if isinstance(output, PackedSequence):
        assert pack is not None
        output = output.data
    results = dict(zip(("output", "h_n", "c_n"), (output, *parts(state)), strict=False))
    random = torch.Generator().manual_seed(2)
    loss = sum(
        (t * torch.randn(t.shape, generator=random, dtype=t.dtype)).sum()
        for name, t in results.items()
        if name in used
    )
    return {**results, **gradients(layer, x, hx, loss)}


def inputs(layer, steps, batch, dtype=torch.float32, layout="time"):
    """Random x and hx for the layer; `layout` is time, batch (first) or single (unbatched)."""
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    shape = {"time": (steps, batch), "batch": (batch, steps), "single": (steps,)}[layout]
    x = torch.randn(*shape, layer.input_size, dtype=dtype)
    rows = () if layout == "single" else (batch,)
    hx = whole([torch.randn(states, *rows, size) for size in sizes_of(layer)])
    return x, each(lambda t: t.to(dtype), hx)


@every_kind
@every_dtype
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["time", "batch", "single"])
@pytest.mark.parametrize("with_hx", [False, True])
def test_options(kind, dtype, num_layers, bidirectional, bias, layout, with_hx):
    options = {"bias": bias, "batch_first": layout == "batch", "bidirectional": bidirectional}
    theirs, ours = twins(kind, 5, 7, num_layers, dtype=dtype, **options)
    x, hx = inputs(ours, 6, 4, dtype, layout)
    hx = hx if with_hx else None
    with elman.torch.require("kernel"):
        actual = run(ours, x, hx)
    agree(actual, run(theirs, x, hx))


@every_kind
@every_dtype
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("L", "N", "D", "H"),
    [
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (1, 33, 2, 5),
        (5, 3, 17, 33),
        (13, 9, 65, 31),
        (3, 17, 8, 16),
        (4, 2, 100, 7),
        (9, 1, 5, 40),
        (40, 6, 3, 64),
        (3, 130, 1, 19),
        (2, 5, 37, 257),
    ],
)
def test_sizes(kind, dtype, bidirectional, L, N, D, H):
    theirs, ours = twins(kind, D, H, dtype=dtype, bidirectional=bidirectional)
    x, hx = inputs(ours, L, N, dtype)
    agree(run(ours, x, hx), run(theirs, x, hx))


@every_kind
@every_dtype
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("lengths", [[6, 5, 5, 2, 1], [2, 6, 1, 5, 5], [3, 3, 3], [1], [1, 1, 4]])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed(kind, dtype, num_layers, bidirectional, with_hx, lengths, batch_first):
    options = {"batch_first": batch_first, "bidirectional": bidirectional}
    theirs, ours = twins(kind, 5, 7, num_layers, dtype=dtype, **options)
    # Two steps more than the longest row needs, which packing cuts off.
    layout = "batch" if batch_first else "time"
    x, hx = inputs(ours, max(lengths) + 2, len(lengths), dtype, layout)
    hx = hx if with_hx else None
    in_order = lengths == sorted(lengths, reverse=True)

    def pack(x):
        return pack_padded_sequence(x, lengths, batch_first, enforce_sorted=in_order)

    with elman.torch.require("kernel"):
        actual = run(ours, x, hx, pack)
    agree(actual, run(theirs, x, hx, pack))

    packed, _ = ours(pack(x), hx)
    expected, _ = theirs(pack(x), hx)
    assert isinstance(packed, PackedSequence)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, e = getattr(packed, field), getattr(expected, field)
        assert (a is None and e is None) or torch.equal(a, e)


@every_kind
def test_pack_sequence(kind):
    theirs, ours = twins(kind, 3, 5, bidirectional=True)
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 4, 1)], enforce_sorted=False)
    actual, expected = (pad_packed_sequence(m(packed)[0], batch_first=True) for m in (ours, theirs))
    agree({"output": actual[0]}, {"output": expected[0]})
    assert torch.equal(actual[1], expected[1])


@every_kind
@pytest.mark.parametrize("batch_sizes", [[3, 2, 0], [2, 0, 0]])
def test_packed_steps_of_no_row(kind, batch_sizes):
    """torch's layers take them, though nothing of torch's packs so."""
    theirs, ours = twins(kind, 3, 5, 2, bidirectional=True)
    x, hx = inputs(ours, sum(batch_sizes), 1)[0][:, 0], inputs(ours, 1, batch_sizes[0])[1]

    def pack(x):
        return PackedSequence(x, torch.tensor(batch_sizes))

    with elman.torch.require("kernel"):
        actual = run(ours, x, hx, pack)
        empty = PackedSequence(x[:0], torch.tensor([0, 0]))
        assert ours(empty)[0].data.shape == theirs(empty)[0].data.shape
    agree(actual, run(theirs, x, hx, pack))


@every_kind
@pytest.mark.parametrize("used", [("output",), ("h_n",), ("c_n",)])
def test_one_result_used(kind, used):
    if used == ("c_n",) and not kind.startswith("lstm"):
        pytest.skip("there is no c")
    theirs, ours = twins(kind, 4, 6, 2, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    agree(run(ours, x, hx, used=used), run(theirs, x, hx, used=used))


@every_kind
@every_dtype
def test_expanded_cotangents(kind, dtype):
    theirs, ours = twins(kind, 4, 6, dtype=dtype)
    for reduce in (
        lambda output, h_n: output.sum() + joined(h_n).sum(),
        lambda output, h_n: output[-1].sum(),
        lambda output, h_n: output[:, 0, ::2].sum() + sum(t[..., 1].sum() for t in parts(h_n)),
        lambda output, h_n: output.transpose(0, 2).flatten()[::3].sum(),
        lambda output, h_n: output.flip(0).cumsum(0)[2].mean(),
    ):
        x, hx = inputs(ours, 5, 3, dtype)
        actual, expected = [], []
        for layer, results in ((ours, actual), (theirs, expected)):
            leaves = leaf(x), leaf(hx)
            results.append(gradients(layer, *leaves, reduce(*layer(*leaves))))
        agree(actual[0], expected[0])


@every_kind
def test_input_without_gradient(kind):
    theirs, ours = twins(kind, 4, 6, 2)
    x, hx = inputs(ours, 5, 3)
    actual, expected = (gradients(m, x, hx, m(x, hx)[0].square().sum()) for m in (ours, theirs))
    assert actual["d_x"] is None
    assert {*parts(actual["d_hx"])} == {None}
    agree(actual, expected)


@every_kind
@pytest.mark.parametrize(
    "frozen",
    [
        ["weight_ih_l0", "bias_hh_l1"],
        ["weight_hh_l0", "weight_hh_l0_reverse", "weight_ih_l1"],
        ["bias_ih_l0", "bias_hh_l0", "bias_ih_l1", "bias_hh_l1"],
        None,  # all of them
    ],
)
def test_frozen_weights(kind, frozen):
    theirs, ours = twins(kind, 4, 6, 2, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    results = []
    for layer in (ours, theirs):
        for name, weight in layer.named_parameters():
            weight.requires_grad_(frozen is not None and name not in frozen)
        results.append(run(layer, x, hx))
    agree(*results)
    assert all(results[0][f"d_{name}"] is None for name in frozen or ["weight_hh_l1_reverse"])


@every_kind
def test_backward_twice(kind):
    _, ours = twins(kind, 4, 6, 2)
    x, hx = inputs(ours, 5, 3)
    x = leaf(x)
    output, _ = ours(x, hx)
    loss = output.square().sum()
    loss.backward(retain_graph=True)
    once = {k: p.grad.clone() for k, p in ours.named_parameters()} | {"x": x.grad.clone()}
    loss.backward()
    twice = {k: p.grad / 2 for k, p in ours.named_parameters()} | {"x": x.grad / 2}
    same_bits(twice, once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@every_kind
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_results_changed_in_place(kind, num_layers, batch):
    """Nothing that backward needs, nor h and c together, may lie in what the caller was given."""
    theirs, ours = twins(kind, 4, 6, num_layers)
    x, hx = inputs(ours, 5, batch)
    results = []
    for layer, in_place in ((ours, True), (theirs, False)):
        leaves = leaf(x), leaf(hx)
        output, h_n = layer(*leaves)
        if in_place:
            output.mul_(3).add_(1)
            for t in parts(h_n):
                t.neg_()
        else:
            output, h_n = output * 3 + 1, each(torch.neg, h_n)
        results.append(gradients(layer, *leaves, output.square().sum() + joined(h_n).pow(3).sum()))
    agree(*results)


@every_kind
@pytest.mark.parametrize("where", ["x", "hx", "weight", "d_output", "d_h_n"])
def test_what_a_bit_negates(kind, where):
    """The imaginary part of a conjugate is a view of numbers with the other sign."""

    def negated(t):
        view = torch.complex(torch.zeros_like(t), -t).conj().imag
        assert view.is_neg()
        return view

    theirs, ours = twins(kind, 4, 6, 1)
    x, hx = inputs(ours, 5, 3)
    results = []
    for layer in (theirs, ours):
        weights = dict(layer.named_parameters())
        given = {"x": x, "hx": hx, "weight": weights["weight_hh_l0"].detach()}
        output, h_n = layer(x, hx)
        cotangents = {"d_output": torch.ones_like(output), "d_h_n": each(torch.ones_like, h_n)}
        for tensors in (given, cotangents):
            if where in tensors:
                tensors[where] = each(negated, tensors[where])
        given = {k: each(lambda t: t.detach().requires_grad_(), t) for k, t in given.items()}
        weights["weight_hh_l0"] = given["weight"]
        output, h_n = torch.func.functional_call(layer, weights, (given["x"], given["hx"]))
        d = torch.autograd.grad((output, *parts(h_n)), tree_leaves(given), tree_leaves(cotangents))
        results.append(dict(enumerate([output, *parts(h_n), *d])))
    agree(*results)


@every_kind
def test_tensors_lent_as_older_torch_lends_them(kind, monkeypatch):
    results = []
    _, ours = twins(kind, 4, 6, 2)
    x, hx = inputs(ours, 5, 3)
    for is_lent in (True, False):
        monkeypatch.setattr(operators, "_IS_LENT", is_lent)
        leaves = leaf(x), leaf(hx)
        output, h_n = ours(*leaves, lengths=[5, 0, 2])
        loss = output.square().sum() + joined(h_n).pow(3).sum()
        results.append(gradients(ours, *leaves, loss) | {"output": output, "h_n": h_n})
    same_bits(*results)


@every_kind
def test_zeroed_results_do_not_reach_the_gradients(kind):
    """Not even past autograd's sight."""
    _, ours = twins(kind, 4, 6, 2)
    x, _ = inputs(ours, 5, 3)
    grads = []
    for spoil in (False, True):
        ours.zero_grad()
        output, h_n = ours(x)
        loss = (output.sum() * 2) + joined(h_n).sum()
        if spoil:
            for t in (output, *parts(h_n)):
                t.data.zero_()
        loss.backward()
        grads.append({k: p.grad.clone() for k, p in ours.named_parameters()})
    same_bits(*grads)


@every_kind
@pytest.mark.parametrize("victim", ["x", "hx", "weight_hh_l0"])
def test_inputs_changed_in_place_are_noticed(kind, victim):
    for layer in twins(kind, 4, 6):
        x, hx = inputs(layer, 5, 3)
        output, _ = layer(x, hx)
        changed = {"x": x, "hx": parts(hx)[0]}.get(victim)
        with torch.no_grad():
            (layer.weight_hh_l0 if changed is None else changed).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


STRIDED = {
    "every other step": lambda x: x[::2],
    "every other row": lambda x: x[:, ::2],
    "every other feature": lambda x: x[..., ::2],
    "features first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "rows first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "a slice within": lambda x: x[1:-1, 1:-1, 1:-1],
    "one row expanded": lambda x: x[:, :1].expand(-1, 4, -1),
    "one step expanded": lambda x: x[:1].expand(6, -1, -1),
    "one feature expanded": lambda x: x[..., :1].expand(-1, -1, 3),
    "flipped": lambda x: x.flip(0),
    "overlapping windows": lambda x: x[:, 0].unfold(0, 3, 1).permute(0, 2, 1)[..., :5],
}


@every_kind
@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("layout", ["time", "batch"])
def test_strided_input(kind, view, layout):
    x = view(torch.randn(8, 6, 10, generator=torch.Generator().manual_seed(3)))
    theirs, ours = twins(kind, x.shape[-1], 7, 2, batch_first=layout == "batch")
    batch = x.shape[0 if layout == "batch" else 1]
    # No stride of its is 1 where it should be.
    hx = whole([torch.randn(size, batch, 2).permute(2, 1, 0) for size in sizes_of(ours)])
    results = []
    for layer in (ours, theirs):
        x_given = x.detach().requires_grad_()
        hx_given = each(lambda t: t.detach().requires_grad_(), hx)
        output, h_n = layer(x_given, hx_given)
        loss = (output.square() * 2).sum() + joined(h_n).pow(3).sum()
        results.append({"output": output, "h_n": h_n} | gradients(layer, x_given, hx_given, loss))
    agree(*results)


@every_kind
@pytest.mark.parametrize("layout", ["time", "batch"])
def test_empty_batch(kind, layout):
    theirs, ours = twins(kind, 4, 6, 2, bidirectional=True, batch_first=layout == "batch")
    x, hx = inputs(ours, 5, 0, layout=layout)
    actual, expected = run(ours, x, hx), run(theirs, x, hx)
    features = 2 * sizes_of(ours)[0]
    shape = (0, 5, features) if layout == "batch" else (5, 0, features)
    assert actual["output"].shape == shape
    assert all(not actual[f"d_{name}"].any() for name, _ in ours.named_parameters())
    agree(actual, expected)


@every_kind
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_autograd(kind, context):
    theirs, ours = twins(kind, 4, 6, 2, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    with context():
        output, h_n = ours(x, hx)
        expected = theirs(x, hx)
    assert not output.requires_grad
    assert output.is_inference() == (context is torch.inference_mode)
    agree({"output": output, "h_n": h_n}, dict(zip(("output", "h_n"), expected, strict=True)))
    trained, _ = ours(x, hx)  # the same arithmetic, whether it keeps what backward needs or not
    assert torch.equal(trained, output)


@every_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_results_are_shaped_as_torchs(kind, batch_first):
    """view(), which torch's result allows, works on ours."""
    theirs, ours = twins(kind, 4, 6, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 3, 4)
    for layer in (ours, theirs):
        output, h_n = layer(x)
        for t, size in zip(parts(h_n), sizes_of(layer), strict=True):
            assert t.is_contiguous()
            assert t.view(2, 2, -1, size).shape[2] == (5 if batch_first else 3)
        features = sizes_of(layer)[0]
        assert output.view(5, 3, 2, features).shape == (5, 3, 2, features)


@every_kind
def test_gradient_of_a_row_is_its_own(kind):
    """NaN and infinity stay in their row."""
    _, ours = twins(kind, 4, 6, 2, bidirectional=True)
    x, _ = inputs(ours, 5, 3)
    spoiled = x.clone()
    spoiled[2, 1, 0] = torch.nan
    spoiled[1, 1, 1] = torch.inf
    others = [0, 2]
    results = []
    for given in (x, spoiled):
        given = leaf(given)
        output, h_n = ours(given)
        (output.sum() + joined(h_n).sum()).backward()
        results.append((output[:, others], joined(h_n)[:, others], given.grad[:, others]))
        if given.isnan().any():
            assert output[2:, 1].isnan().all()
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


# --- Finite differences --------------------------------------------------------------------------

LENGTHS = torch.tensor([3, 0, 2])
RESET = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.bool)


def as_function(layer, pack=None, **options):
    """The layer as a function of x, hx and its weights, and those as float64 leaves."""
    x, hx = (leaf(t) for t in inputs(layer, 3, 3, torch.float64))
    names, weights = zip(*layer.named_parameters(), strict=True)
    states = parts(hx)

    def function(x, *others):
        x = x if pack is None else pack(x)
        hx, weights = whole(others[: len(states)]), others[len(states) :]
        named = dict(zip(names, weights, strict=True))
        output, h_n = torch.func.functional_call(layer, named, (x, hx), options)
        return output.data if pack else output, *parts(h_n)

    return function, (x, *states, *(leaf(w) for w in weights))


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm", "lstm_proj"])
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"num_layers": 2, "bias": False}, {}),
        ({"bidirectional": True}, {"lengths": LENGTHS}),
        ({"bidirectional": True}, {"lengths": LENGTHS, "reset": RESET}),
        ({}, {"reset": RESET}),
        (
            {"bidirectional": True},
            {"pack": lambda x: pack_padded_sequence(x, [1, 3, 2], enforce_sorted=False)},
        ),
    ],
    ids=["plain", "two layers", "lengths", "lengths and reset", "reset", "packed"],
)
def test_finite_differences(kind, options, call):
    _, ours = twins(kind, 2, 2, dtype=torch.float64, **options)
    function, leaves = as_function(ours, **call)
    with elman.torch.require("kernel"):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@every_kind
def test_gradients_of_gradients(kind):
    """The gradient penalty of a model of two layers, and third derivatives besides."""
    theirs, ours = twins(kind, 3, 4, 2, dtype=torch.float64, bidirectional=True)
    x, hx = inputs(ours, 4, 2, torch.float64)
    results = []
    for layer in (ours, theirs):
        leaves = leaf(x), leaf(hx)
        output, h_n = layer(*leaves)
        loss = output.square().sum() + joined(h_n).pow(3).sum()
        first = torch.autograd.grad(loss, tree_leaves(leaves), create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        (second,) = torch.autograd.grad(penalty, leaves[0], create_graph=True)
        results.append(
            {"first": first, "second": second}
            | gradients(layer, *leaves, loss + penalty + second.square().sum())
        )
    agree(*results)


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_vectorised_jacobian(kind):
    theirs, ours = twins(kind, 2, 3, dtype=torch.float64)
    x, hx = inputs(ours, 3, 2, torch.float64)
    for vectorize in (False, True):
        actual, expected = (
            torch.autograd.functional.jacobian(
                lambda x, *hx, m=m: m(x, whole(hx))[0], (x, *parts(hx)), vectorize=vectorize
            )
            for m in (ours, theirs)
        )
        agree(dict(enumerate(actual)), dict(enumerate(expected)))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_training_reaches_the_same_weights(kind):
    """Ten steps of Adam, a model of two layers with a head, clipped gradients."""
    theirs, ours = twins(kind, 3, 8, 2, dtype=torch.float64, bidirectional=True)
    x, _ = inputs(ours, 7, 5, torch.float64)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(4)
        model = nn.ModuleDict({"layer": layer, "head": nn.Linear(16, 2, dtype=torch.float64)})
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(10):
            optimiser.zero_grad()
            model["head"](layer(x)[0]).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimiser.step()
        results.append(dict(model.state_dict()))
    # Adam divides by the size of the gradient: twelve digits of it leave a few less here.
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, rtol=1e-8, atol=1e-10)
