"""torch.func's transforms, forward mode and double backward, against torch.nn's layers.

torch's own layers have no rule for vmap: what they are mapped over, they are called on one by one.
"""

import itertools

import pytest
import torch
from reference import parts, whole
from test_torch_layers import KINDS, agree, every_kind, inputs, joined, leaf, sizes_of, twins
from test_torch_paths import cells, every_cell, state_for
from torch import func, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

import elman.torch
from elman.torch import paths, require

DOUBLE = {"dtype": torch.float64}
OPTIONS = {
    "plain": {},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "without bias, batch first": {"bias": False, "batch_first": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

stack_module_state, functional_call = func.stack_module_state, func.functional_call


@pytest.fixture(autouse=True)
def _fresh_counter():
    paths.clear()


def alike(actual, expected):
    """agree() for results of any structure."""
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    agree(dict(enumerate(actual)), dict(enumerate(expected)))


def same(actual, expected):
    """The very same bits."""
    pairs = zip(tree_leaves(actual), tree_leaves(expected), strict=True)
    assert all(torch.equal(a, e) for a, e in pairs)


def stacked(results):
    """What vmap makes of the results of calls one by one."""
    return tree_map(lambda *tensors: torch.stack(tensors), *results)


def ensemble(kind, size, *sizes, **options):
    """Pairs of twins, each with weights of their own."""
    pairs = [twins(kind, *sizes, **options) for _ in range(size)]
    for n, (theirs, ours) in enumerate(pairs):
        torch.manual_seed(n)
        theirs.reset_parameters()
        ours.load_state_dict(theirs.state_dict())
    return [list(modules) for modules in zip(*pairs, strict=True)]


def weights_of(layer):
    return {name: w.detach() for name, w in layer.named_parameters()}


def loss_of(layer):
    """A function of weights and input, with a cotangent of its own for every value."""

    def loss(weights, *given, **extent):
        output, state = functional_call(layer, weights, given, extent)
        total = 0
        for t in (output, *parts(state)):
            t = t.data if isinstance(t, PackedSequence) else t
            total = total + (t * torch.linspace(-1, 2, t.numel(), **DOUBLE).view(t.shape)).sum()
            total = total + t.square().sum()
        return total

    return loss


# --- vmap over inputs ----------------------------------------------------------------------------


@every_kind
@every_option
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_map_over_inputs(kind, options, axis):
    """All in one batch: one call of the engine a layer."""
    theirs, ours = twins(kind, 3, 4, **options, **DOUBLE)
    many = torch.randn(6, 5, 2, 3, **DOUBLE)
    with require("kernel"):
        actual = func.vmap(ours, in_dims=axis)(many.movedim(0, axis))
    assert dict(paths) == {"kernel": ours.num_layers}
    alike(actual, stacked(map(theirs, many)))


@every_kind
def test_map_over_inputs_changes_no_bit(kind):
    _, ours = twins(kind, 3, 40, 2, bidirectional=True)
    many = torch.randn(6, 5, 2, 3)
    same(func.vmap(ours)(many), stacked(map(ours, many)))
    with torch.no_grad():
        same(func.vmap(ours)(many), stacked(map(ours, many)))


@every_kind
def test_map_over_initial_states(kind):
    theirs, ours = twins(kind, 3, 4, 2, bidirectional=True, **DOUBLE)
    x = torch.randn(5, 2, 3, **DOUBLE)
    many = [torch.randn(6, 4, 2, size, **DOUBLE) for size in sizes_of(ours)]
    alike(
        func.vmap(lambda *h: ours(x, whole(h)))(*many),
        stacked(theirs(x, whole(h)) for h in zip(*many, strict=True)),
    )


@pytest.mark.parametrize("kind", ["lstm", "lstm_proj"])
@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (1, -1)])
def test_map_over_one_state_of_two(kind, mapped):
    theirs, ours = twins(kind, 3, 4, 2, bidirectional=True, **DOUBLE)
    x = torch.randn(5, 2, 3, **DOUBLE)
    many = [torch.randn(6, 4, 2, size, **DOUBLE) for size in sizes_of(ours)]
    given = [
        t[0] if axis is None else t.movedim(0, axis) for t, axis in zip(many, mapped, strict=True)
    ]
    rows = ([t[0]] * 6 if axis is None else t for t, axis in zip(many, mapped, strict=True))
    alike(
        func.vmap(lambda h, c: ours(x, (h, c)), mapped)(*given),
        stacked(theirs(x, pair) for pair in zip(*rows, strict=True)),
    )


@every_kind
def test_map_over_rows(kind):
    """Unbatched calls, the mapped axis the batch's own, and maps of maps."""
    theirs, ours = twins(kind, 3, 4, bidirectional=True, **DOUBLE)
    x = torch.randn(5, 2, 3, **DOUBLE)
    alike(func.vmap(ours, 1, 1)(x), theirs(x))
    many = torch.randn(3, 2, 5, 2, 3, **DOUBLE)
    expected = stacked(stacked(map(theirs, some)) for some in many)
    alike(func.vmap(func.vmap(ours))(many), expected)
    alike(func.vmap(func.vmap(ours, 1), 0)(many.transpose(1, 2)), expected)


@every_kind
@pytest.mark.parametrize("mapped", list(itertools.product([0, None], repeat=3))[:-1])
def test_map_over_lengths_and_reset(kind, mapped):
    _, ours = twins(kind, 3, 4, 2, bidirectional=True, **DOUBLE)
    given = [
        torch.randn(3, 5, 2, 3, **DOUBLE),
        torch.tensor([[5, 0], [1, 2], [3, 5]]),
        torch.rand(3, 5, 2) < 0.3,
    ]
    given = [t if axis == 0 else t[0] for t, axis in zip(given, mapped, strict=True)]

    def call(x, lengths, reset):
        return ours(x, lengths=lengths, reset=reset)

    rows = ([t] * 3 if axis is None else t for t, axis in zip(given, mapped, strict=True))
    same(func.vmap(call, mapped)(*given), stacked(itertools.starmap(call, zip(*rows, strict=True))))


def test_mapped_lengths_are_checked():
    layer = elman.torch.GRU(3, 4)
    with pytest.raises(RuntimeError, match=r"lengths.*\b5\b.*6"):
        func.vmap(lambda x, n: layer(x, lengths=n))(
            torch.randn(2, 5, 1, 3), torch.tensor([[5], [6]])
        )


def packed(layer, batch_sizes):
    def call(data):
        output, h_n = layer(PackedSequence(data, batch_sizes))
        return output.data, h_n

    return call


@every_kind
def test_map_over_packed_inputs(kind):
    theirs, ours = twins(kind, 3, 4, 2, bidirectional=True, **DOUBLE)
    batch_sizes = torch.tensor([3, 3, 2, 1])
    many = torch.randn(5, 9, 3, **DOUBLE)
    alike(
        func.vmap(packed(ours, batch_sizes))(many),
        stacked(map(packed(theirs, batch_sizes), many)),
    )


@every_kind
@every_option
def test_gradients_per_sample(kind, options):
    theirs, ours = twins(kind, 3, 4, **options, **DOUBLE)
    many = torch.randn(6, 5, 2, 3, **DOUBLE)
    with require("kernel"):
        actual = func.vmap(func.grad(loss_of(ours), (0, 1)), (None, 0))(weights_of(ours), many)
    per_sample = func.grad(loss_of(theirs), (0, 1))
    alike(actual, stacked(per_sample(weights_of(theirs), x) for x in many))


@every_kind
def test_gradients_per_sample_with_extents(kind):
    _, ours = twins(kind, 3, 4, 2, bidirectional=True, **DOUBLE)
    many, lengths = torch.randn(3, 5, 2, 3, **DOUBLE), torch.tensor([[5, 0], [1, 2], [3, 5]])
    reset = torch.rand(5, 2) < 0.3

    def gradient(weights, x, lengths):
        return func.grad(loss_of(ours), (0, 1))(weights, x, lengths=lengths, reset=reset)

    weights = weights_of(ours)
    same(
        func.vmap(gradient, (None, 0, 0))(weights, many, lengths),
        stacked(gradient(weights, x, n) for x, n in zip(many, lengths, strict=True)),
    )

    def total(weights, many, lengths):
        loss = loss_of(ours)
        calls = func.vmap(lambda x, n: loss(weights, x, lengths=n, reset=reset))
        return calls(many, lengths).sum()

    each = [gradient(weights, x, n) for x, n in zip(many, lengths, strict=True)]
    alike(
        func.grad(total, (0, 1))(weights, many, lengths),
        (
            tree_map(lambda *t: sum(t), *(of_weights for of_weights, _ in each)),
            torch.stack([of_x for _, of_x in each]),
        ),
    )


@every_kind
def test_gradients_per_sample_of_packed_input(kind):
    """Each as its rows in padded input have them."""
    _, ours = twins(kind, 3, 4, 2, bidirectional=True, **DOUBLE)
    weights, lengths = weights_of(ours), [4, 3, 2]
    many = torch.randn(5, 4, 3, 3, **DOUBLE)
    batch_sizes = pack_padded_sequence(many[0], lengths).batch_sizes
    data = torch.stack([pack_padded_sequence(x, lengths).data for x in many])

    def square(weights, data):
        output, h_n = functional_call(ours, weights, (PackedSequence(data, batch_sizes),))
        return output.data.square().sum() + joined(h_n).pow(3).sum()

    def padded(weights, x):
        output, h_n = functional_call(ours, weights, (x,), {"lengths": lengths})
        return output.square().sum() + joined(h_n).pow(3).sum()

    alike(
        func.vmap(func.grad(square), (None, 0))(weights, data),
        stacked(func.grad(padded)(weights, x) for x in many),
    )


# --- vmap over weights ---------------------------------------------------------------------------


@every_kind
@every_option
def test_ensemble(kind, options):
    """One call of the operator a layer for all members, with shared input and with their own."""
    theirs, ours = ensemble(kind, 3, 3, 4, **options, **DOUBLE)
    weights, _ = stack_module_state(ours)
    many = torch.randn(3, 5, 2, 3, **DOUBLE)

    def member(weights, x):
        return functional_call(ours[0], weights, (x,))

    with require("kernel"):
        shared = func.vmap(member, (0, None))(weights, many[0])
        assert dict(paths) == {"kernel": ours[0].num_layers}
        own = func.vmap(member)(weights, many)
    alike(shared, stacked(m(many[0]) for m in theirs))
    alike(own, stacked(m(x) for m, x in zip(theirs, many, strict=True)))


@every_kind
def test_members_have_the_bits_that_they_have_alone(kind):
    _, ours = ensemble(kind, 3, 3, 40, 2, bidirectional=True)
    weights, _ = stack_module_state(ours)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 2])

    def member(weights):
        return functional_call(ours[0], weights, (x,), {"lengths": lengths})

    same(func.vmap(member)(weights), stacked(m(x, lengths=lengths) for m in ours))
    with torch.no_grad():
        same(func.vmap(member)(weights), stacked(m(x, lengths=lengths) for m in ours))


@every_kind
def test_some_weights_mapped(kind):
    theirs, ours = ensemble(kind, 3, 3, 4, **DOUBLE)
    x = torch.randn(5, 2, 3, **DOUBLE)
    recurrent = torch.stack([m.weight_hh_l0.detach() for m in ours])

    def member(w):
        return functional_call(ours[0], {"weight_hh_l0": w}, (x,))

    expected = [functional_call(theirs[0], {"weight_hh_l0": w}, (x,)) for w in recurrent]
    alike(func.vmap(member)(recurrent), stacked(expected))


@every_kind
def test_maps_over_weights_and_inputs(kind):
    """In either order, and over weights twice."""
    theirs, ours = ensemble(kind, 4, 3, 4, bidirectional=True, **DOUBLE)
    weights, _ = stack_module_state(ours)
    many = torch.randn(3, 5, 2, 3, **DOUBLE)

    def member(weights, x):
        return functional_call(ours[0], weights, (x,))

    over_inputs = func.vmap(func.vmap(member, (None, 0)), (0, None))(weights, many)
    over_weights = func.vmap(func.vmap(member, (0, None)), (None, 0))(weights, many)
    alike(over_inputs, stacked(stacked(map(m, many)) for m in theirs))
    alike(over_weights, stacked(stacked(m(x) for m in theirs) for x in many))
    pairs = {name: w.unflatten(0, (2, 2)) for name, w in weights.items()}
    twice = func.vmap(func.vmap(member, (0, None)), (0, None))(pairs, many[0])
    alike(twice, stacked(stacked(m(many[0]) for m in some) for some in (theirs[:2], theirs[2:])))


@every_kind
def test_gradients_of_an_ensemble(kind):
    """And for each member those of each sample."""
    theirs, ours = ensemble(kind, 3, 3, 4, 2, bidirectional=True, **DOUBLE)
    weights, _ = stack_module_state(ours)
    many = torch.randn(2, 5, 2, 3, **DOUBLE)
    gradient, expected = (func.grad(loss_of(m[0]), (0, 1)) for m in (ours, theirs))
    with require("kernel"):
        actual = func.vmap(gradient, (0, None))(weights, many[0])
        each = func.vmap(func.vmap(gradient, (None, 0)), (0, None))(weights, many)
    alike(actual, stacked(expected(weights_of(m), many[0]) for m in theirs))
    alike(each, stacked(stacked(expected(weights_of(m), x) for x in many) for m in theirs))


def test_ensemble_in_training():
    """Stacked weights in an ordinary optimiser: every member learns as it does alone."""
    theirs, ours = ensemble("gru", 3, 3, 4, **DOUBLE)
    weights, _ = stack_module_state(ours)
    x = torch.randn(5, 2, 3, **DOUBLE)
    losses = loss_of(ours[0])
    optimiser = torch.optim.SGD(weights.values(), 0.01)
    alone = [torch.optim.SGD(m.parameters(), 0.01) for m in theirs]
    for _ in range(3):
        optimiser.zero_grad()
        func.vmap(losses, (0, None))(weights, x).sum().backward()
        optimiser.step()
        for member, its in zip(theirs, alone, strict=True):
            its.zero_grad()
            loss_of(member)(dict(member.named_parameters()), x).backward()
            its.step()
    alike(weights, stacked(dict(m.named_parameters()) for m in theirs))


# --- Derivatives ---------------------------------------------------------------------------------


@every_kind
@every_option
def test_derivatives(kind, options):
    """Of output and state, by the input and by the weights."""
    theirs, ours = twins(kind, 2, 3, **options, **DOUBLE)
    x, tangent = torch.randn(2, 3, 2, 2, **DOUBLE)

    def results_of(layer):
        weights = weights_of(layer)

        def call(weights, x):
            return functional_call(layer, weights, (x,))

        loss, of_both = loss_of(layer), (0, 1)
        changes = tree_map(torch.cos, weights)
        return {
            "grad": func.grad(loss, of_both)(weights, x),
            "vjp": func.vjp(call, weights, x)[1](tree_map(torch.sin, layer(x))),
            "jacrev": func.jacrev(call, of_both)(weights, x),
            "jvp": func.jvp(call, (weights, x), (changes, tangent)),
            "jacfwd": func.jacfwd(call, of_both)(weights, x),
            "hessian": func.hessian(loss, of_both)(weights, x),
        }

    expected = results_of(theirs)
    for name, result in results_of(ours).items():
        alike(result, expected[name])


@every_kind
def test_paths_of_derivatives(kind):
    """Backward ones run in the engine, forward ones as the loop on tensors."""
    _, ours = twins(kind, 2, 3, 2, **DOUBLE)
    loss, weights, x = loss_of(ours), weights_of(ours), torch.randn(3, 2, 2, **DOUBLE)
    for transform in (func.grad, func.jacrev, lambda f: func.jacrev(func.jacrev(f))):
        with require("kernel"):
            transform(loss)(weights, x)
    for transform in (func.jacfwd, func.hessian, lambda f: func.jacrev(func.jacfwd(f))):
        with require("scan"):
            transform(loss)(weights, x)


@every_kind
def test_derivatives_of_derivatives(kind):
    theirs, ours = twins(kind, 2, 3, bidirectional=True, **DOUBLE)
    x, many = torch.randn(3, 2, 2, **DOUBLE), torch.randn(3, 3, 2, 2, **DOUBLE)
    weights = weights_of(ours)

    def penalty(layer):
        gradient = func.grad(loss_of(layer), (0, 1))
        return lambda w, x: sum(g.square().sum() for g in tree_leaves(gradient(w, x)))

    hessian = func.hessian(loss_of(theirs))(weights, x)
    alike(func.jacrev(func.jacrev(loss_of(ours)))(weights, x), hessian)
    alike(func.jacrev(func.jacfwd(loss_of(ours)))(weights, x), hessian)
    second, expected = (func.grad(penalty(m), (0, 1)) for m in (ours, theirs))
    alike(second(weights, x), expected(weights, x))
    mapped = func.vmap(second, (None, 0))(weights, many)
    alike(mapped, stacked(expected(weights, x) for x in many))

    def mapped_penalty(weights, many):
        return func.vmap(penalty(ours), (None, 0))(weights, many).sum()

    actual = func.grad(mapped_penalty, (0, 1))(weights, many)
    rows = [expected(weights, x) for x in many]
    alike(actual[0], tree_map(lambda *t: sum(t), *(of_weights for of_weights, _ in rows)))
    alike(actual[1], torch.stack([of_x for _, of_x in rows]))
    third, expected = (
        func.grad(lambda x, s=s: s(weights, x)[1].square().sum())(x) for s in (second, expected)
    )
    alike(third, expected)


@every_kind
def test_second_derivatives_of_an_ensemble(kind):
    theirs, ours = ensemble(kind, 2, 2, 3, **DOUBLE)
    weights, _ = stack_module_state(ours)
    x = torch.randn(3, 2, 2, **DOUBLE)
    actual = func.vmap(func.jacrev(func.jacrev(loss_of(ours[0]))), (0, None))(weights, x)
    alike(actual, stacked(func.hessian(loss_of(m))(weights_of(m), x) for m in theirs))


@every_kind
def test_second_derivatives_of_packed_input(kind):
    """As those of the same rows with lengths=."""
    _, ours = twins(kind, 2, 3, bidirectional=True, **DOUBLE)
    x, lengths = torch.randn(3, 2, 2, **DOUBLE), [3, 2]

    rows = torch.tensor([0, 1, 2, 3, 4])  # (t, n) is row 2 t + n; the last one is padding
    batch_sizes = torch.tensor([2, 2, 1])

    def square(x, pack):
        if pack:
            output, h_n = packed(ours, batch_sizes)(x.flatten(0, 1)[rows])
        else:
            output, h_n = ours(x, lengths=lengths)
        return output.square().sum() + joined(h_n).pow(3).sum()

    expected = func.hessian(lambda x: square(x, False))(x)
    for transform in (func.hessian, lambda f: func.jacrev(func.jacrev(f))):
        alike(transform(lambda x: square(x, True))(x), expected)


@every_kind
@pytest.mark.parametrize("through", ["x", "h_0", "c_0", "weight"])
def test_forward_mode(kind, through):
    """Dual numbers outside torch.func."""
    ad = torch.autograd.forward_ad
    theirs, ours = twins(kind, 3, 4, **DOUBLE)
    x, hx = inputs(ours, 5, 2, torch.float64)
    states = dict(zip(("h_0", "c_0"), parts(hx), strict=False))
    if through == "c_0" and through not in states:
        pytest.skip("there is no c")
    results = []
    for layer in (ours, theirs):
        given = {"x": x, "weight": layer.weight_hh_l0.detach(), **states}
        with ad.dual_level():
            primal = given[through]
            tangent = torch.arange(primal.numel(), **DOUBLE).reshape(primal.shape).cos()
            duals = {**given, through: ad.make_dual(primal, tangent)}
            hx = whole([duals[name] for name in states])
            output, h_n = functional_call(
                layer, {"weight_hh_l0": duals["weight"]}, (duals["x"], hx)
            )
            results.append([[*ad.unpack_dual(t)] for t in (output, *parts(h_n))])
    alike(*results)


@every_kind
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # func.linearize's own
def test_other_transforms(kind):
    theirs, ours = twins(kind, 3, 4, 2, **DOUBLE)
    x, tangent = torch.randn(2, 5, 2, 3, **DOUBLE)
    _, linear = func.linearize(lambda x: ours(x)[0], x)
    alike(linear(tangent), func.jvp(lambda x: theirs(x)[0], (x,), (tangent,))[1])
    alike(func.functionalize(ours)(x), theirs(x))


def test_dropout_under_vmap():
    """Masks as torch.func.vmap has them: it asks which are meant."""
    _, layer = twins("gru", 3, 16, 2, dropout=0.5)
    x = torch.randn(5, 2, 3).expand(3, 5, 2, 3)
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(layer)(x)
    same_masks, _ = func.vmap(layer, randomness="same")(x)
    assert torch.equal(same_masks[0], same_masks[1])
    other_masks, _ = func.vmap(layer, randomness="different")(x)
    assert not torch.equal(other_masks[0], other_masks[1])


# --- Finite differences --------------------------------------------------------------------------


CALLS = {
    "plain": ({}, {}),
    "no bias": ({"bias": False}, {}),
    "lengths": ({}, {"lengths": torch.tensor([3, 1])}),
    "reset": ({}, {"reset": torch.tensor([[False, True], [True, False], [False, False]])}),
    "batch first": ({"batch_first": True}, {}),
    "two layers": ({"num_layers": 2}, {}),
    "two directions": ({"bidirectional": True}, {"lengths": torch.tensor([3, 2])}),
}


@pytest.mark.parametrize(
    ("kind", "call"),  # every kind, and every call, which kinds do not see
    [
        *((kind, call) for kind in KINDS for call in ("plain", "two directions")),
        *((kind, call) for kind in ("gru", "lstm_proj") for call in list(CALLS)[1:-1]),
    ],
)
def test_finite_differences(kind, call):
    """First and second derivatives, backward and forward, one by one and mapped."""
    options, given = CALLS[call]
    _, layer = twins(kind, 2, 2, **options, **DOUBLE)
    x, hx = inputs(layer, 3, 2, torch.float64, "batch" if "batch_first" in options else "time")
    names, weights = zip(*layer.named_parameters(), strict=True)
    states = parts(hx)

    def function(x, *others):
        hx, weights = whole(others[: len(states)]), others[len(states) :]
        named = dict(zip(names, weights, strict=True))
        output, h_n = functional_call(layer, named, (x, hx), given)
        return output, *parts(h_n)

    leaves = [leaf(t) for t in (x, *states, *weights)]
    checks = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, **checks)


# --- Cells ---------------------------------------------------------------------------------------


@every_cell
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet.*_cell")
def test_cells(kind):
    theirs, ours = cells(kind, 3, 4, **DOUBLE)
    x, tangent = torch.randn(2, 5, 3, **DOUBLE)
    h = state_for(kind, 5, 4, **DOUBLE)
    alike(func.vmap(ours)(x), theirs(x))
    alike(func.vmap(ours, (None, 0))(x[0], h), theirs(x[:1].expand(5, 3), h))

    def square(m):
        return lambda x: joined(m(x)).square().sum()

    for transform in (
        lambda m: func.grad(square(m))(x),
        lambda m: func.jacrev(m)(x),
        lambda m: func.jacfwd(m)(x),
        lambda m: func.jvp(m, (x,), (tangent,))[1],
        lambda m: func.hessian(square(m))(x[0]),
    ):
        alike(transform(ours), transform(theirs))


@every_cell
def test_ensemble_of_cells(kind):
    pairs = [cells(kind, 3, 4, **DOUBLE) for _ in range(2)]
    for n, (theirs, ours) in enumerate(pairs):
        torch.manual_seed(n)
        theirs.reset_parameters()
        ours.load_state_dict(theirs.state_dict())
    weights, _ = stack_module_state([ours for _, ours in pairs])
    x = torch.randn(5, 3, **DOUBLE)

    def square(cell):
        return lambda weights: joined(functional_call(cell, weights, (x,))).square().sum()

    alike(
        func.vmap(func.grad(square(pairs[0][1])))(weights),
        stacked(func.grad(square(theirs))(weights_of(theirs)) for theirs, _ in pairs),
    )


@every_cell
def test_forward_mode_of_cells(kind):
    ad = torch.autograd.forward_ad
    theirs, ours = cells(kind, 3, 4, **DOUBLE)
    x, tangent = torch.randn(2, 5, 3, **DOUBLE)
    with ad.dual_level():
        states = [parts(m(ad.make_dual(x, tangent))) for m in (ours, theirs)]
        results = [[[*ad.unpack_dual(t)] for t in state] for state in states]
    alike(*results)


# --- What torch.nn's layers cannot do ------------------------------------------------------------


def map_over_inputs(layer, weights, x):
    return func.vmap(lambda x: functional_call(layer, weights, (x,)))(x)


def map_over_weights(layer, weights, x):
    stack = {name: torch.stack([w, w]) for name, w in weights.items()}
    return func.vmap(lambda w: functional_call(layer, w, (x[0],)))(stack)


def per_sample_gradients(layer, weights, x):
    return func.vmap(func.grad(loss_of(layer)), (None, 0))(weights, x)


def gradient_of_packed_input(layer, weights, x):
    rows = pack_padded_sequence(x[0], [5, 3])
    return func.grad(lambda d: packed(layer, rows.batch_sizes)(d)[0].sum())(rows.data)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(
    ("feature", "error"),
    [
        (map_over_inputs, "Batching rule not implemented for aten::"),
        (map_over_weights, "Batching rule not implemented for aten::"),
        (per_sample_gradients, "doesn't match the broadcast shape"),
        (gradient_of_packed_input, "Cannot access data pointer of Tensor"),
    ],
)
def test_torchs_own_cannot(name, feature, error):
    """Red when a later torch can: then the table of what it cannot do is to be mended."""
    x = torch.randn(3, 5, 2, 3, **DOUBLE)
    for module, fails in ((nn, True), (elman.torch, False)):
        layer = getattr(module, name)(3, 4, **DOUBLE)
        weights = weights_of(layer)
        if fails:
            with pytest.raises(RuntimeError, match=error):
                feature(layer, weights, x)
        else:
            feature(layer, weights, x)
